"""Weights of the models that write text, with plain feed-forwards: GPT-2 and its time.

Source of the shapes: the model classes of transformers 5 (``models/*/modeling_*.py``), which the tests build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_lab.domain.sheet import Sheet


def body_of(head: str, name: str) -> str:
    """Prefix of a body under a head; a plain model has none."""
    return "" if head == "Model" else f"{name}."


def write_head(
    sheet: Sheet, head: str, hidden: int, *, is_tied: bool, bias: bool = False, tokens: str = "score"
) -> bool:
    """Write what turns the last hidden state into logits or classes; False for a head that is not known.

    Parameters
    ----------
    is_tied : whether the logits' weight is the embedding's
    bias : of the logits
    tokens : what a classifier of tokens is called
    """
    if head == "CausalLM":
        sheet.linear("lm_head", (sheet.number("vocab_size"), hidden), bias=bias, is_tied=is_tied, is_output=True)
    elif head == "SequenceClassification":
        sheet.linear("score", (sheet.labels, hidden), is_output=True)
    elif head == "TokenClassification":
        sheet.linear(tokens, (sheet.labels, hidden), bias=True, is_output=True)
    else:
        return head == "Model"
    return True


def _gpt2(sheet: Sheet, head: str) -> bool:
    hidden = sheet.number("n_embd", "hidden_size", default=768)
    inner = sheet.number("n_inner", default=4 * hidden)
    body = body_of(head, "transformer")
    sheet.embedding(f"{body}wte", sheet.number("vocab_size", default=50257), hidden)
    sheet.embedding(f"{body}wpe", sheet.number("n_positions", "max_position_embeddings", default=1024), hidden)
    for layer in range(sheet.layers("n_layer", "num_hidden_layers", default=12)):
        at = f"{body}h.{layer}"
        sheet.norm(f"{at}.ln_1", hidden)
        sheet.conv1d(f"{at}.attn.c_attn", (hidden, 3 * hidden))
        sheet.conv1d(f"{at}.attn.c_proj", (hidden, hidden))
        sheet.norm(f"{at}.ln_2", hidden)
        sheet.conv1d(f"{at}.mlp.c_fc", (hidden, inner))
        sheet.conv1d(f"{at}.mlp.c_proj", (inner, hidden))
    sheet.norm(f"{body}ln_f", hidden)
    is_tied = sheet.flag("tie_word_embeddings", default=True)
    return write_head(sheet, head, hidden, is_tied=is_tied, tokens="classifier")


def _gpt_neo(sheet: Sheet, head: str) -> bool:
    hidden = sheet.number("hidden_size")
    inner = sheet.number("intermediate_size", default=4 * hidden)
    body = body_of(head, "transformer")
    sheet.embedding(f"{body}wte", sheet.number("vocab_size"), hidden)
    sheet.embedding(f"{body}wpe", sheet.number("max_position_embeddings"), hidden)
    for layer in range(sheet.layers("num_layers", "num_hidden_layers")):
        at = f"{body}h.{layer}"
        sheet.norm(f"{at}.ln_1", hidden)
        for name in ("k_proj", "v_proj", "q_proj"):
            sheet.linear(f"{at}.attn.attention.{name}", (hidden, hidden))
        sheet.linear(f"{at}.attn.attention.out_proj", (hidden, hidden), bias=True)
        sheet.norm(f"{at}.ln_2", hidden)
        sheet.linear(f"{at}.mlp.c_fc", (inner, hidden), bias=True)
        sheet.linear(f"{at}.mlp.c_proj", (hidden, inner), bias=True)
    sheet.norm(f"{body}ln_f", hidden)
    is_tied = sheet.flag("tie_word_embeddings", default=True)
    return write_head(sheet, head, hidden, is_tied=is_tied, tokens="classifier")


def _gptj(sheet: Sheet, head: str) -> bool:
    hidden = sheet.number("n_embd", "hidden_size")
    inner = sheet.number("n_inner", default=4 * hidden)
    body = body_of(head, "transformer")
    sheet.embedding(f"{body}wte", sheet.number("vocab_size"), hidden)
    for layer in range(sheet.layers("n_layer", "num_hidden_layers")):
        at = f"{body}h.{layer}"
        sheet.norm(f"{at}.ln_1", hidden)
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            sheet.linear(f"{at}.attn.{name}", (hidden, hidden))
        sheet.linear(f"{at}.mlp.fc_in", (inner, hidden), bias=True)
        sheet.linear(f"{at}.mlp.fc_out", (hidden, inner), bias=True)
    sheet.norm(f"{body}ln_f", hidden)
    is_tied = sheet.flag("tie_word_embeddings", default=False)
    return write_head(sheet, head, hidden, is_tied=is_tied, bias=True)


def _gpt_neox(sheet: Sheet, head: str) -> bool:
    hidden, inner = sheet.number("hidden_size"), sheet.number("intermediate_size")
    bias = sheet.flag("attention_bias", default=True)
    body = body_of(head, "gpt_neox")
    sheet.embedding(f"{body}embed_in", sheet.number("vocab_size"), hidden)
    for layer in range(sheet.layers("num_hidden_layers")):
        at = f"{body}layers.{layer}"
        sheet.norm(f"{at}.input_layernorm", hidden)
        sheet.norm(f"{at}.post_attention_layernorm", hidden)
        sheet.linear(f"{at}.attention.query_key_value", (3 * hidden, hidden), bias=bias)
        sheet.linear(f"{at}.attention.dense", (hidden, hidden), bias=bias)
        sheet.linear(f"{at}.mlp.dense_h_to_4h", (inner, hidden), bias=True)
        sheet.linear(f"{at}.mlp.dense_4h_to_h", (hidden, inner), bias=True)
    sheet.norm(f"{body}final_layer_norm", hidden)
    is_tied = sheet.flag("tie_word_embeddings", default=False)
    return write_head(sheet, head, hidden, is_tied=is_tied, tokens="classifier")


def _opt(sheet: Sheet, head: str) -> bool:
    hidden, inner = sheet.number("hidden_size"), sheet.number("ffn_dim")
    size = sheet.number("word_embed_proj_dim", default=hidden)
    bias = sheet.flag("enable_bias", default=True)
    has_norms = sheet.flag("layer_norm_elementwise_affine", default=True)
    body = "decoder." if head == "Model" else "model.decoder."
    sheet.embedding(f"{body}embed_tokens", sheet.number("vocab_size"), size)
    sheet.embedding(f"{body}embed_positions", sheet.number("max_position_embeddings") + 2, hidden)
    if size != hidden:
        sheet.linear(f"{body}project_in", (hidden, size))
        sheet.linear(f"{body}project_out", (size, hidden))
    for layer in range(sheet.layers("num_hidden_layers")):
        at = f"{body}layers.{layer}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            sheet.linear(f"{at}.self_attn.{name}", (hidden, hidden), bias=bias)
        sheet.linear(f"{at}.fc1", (inner, hidden), bias=bias)
        sheet.linear(f"{at}.fc2", (hidden, inner), bias=bias)
        for name in ("self_attn_layer_norm", "final_layer_norm") if has_norms else ():
            sheet.norm(f"{at}.{name}", hidden)
    is_last_normed = sheet.flag("do_layer_norm_before", default=True)
    if has_norms and is_last_normed and not sheet.flag("_remove_final_layer_norm", default=False):
        sheet.norm(f"{body}final_layer_norm", hidden)
    return write_head(sheet, head, size, is_tied=sheet.flag("tie_word_embeddings", default=True))


def _bloom(sheet: Sheet, head: str) -> bool:
    hidden = sheet.number("hidden_size", "n_embed")
    body = body_of(head, "transformer")
    sheet.embedding(f"{body}word_embeddings", sheet.number("vocab_size"), hidden)
    sheet.norm(f"{body}word_embeddings_layernorm", hidden)
    for layer in range(sheet.layers("n_layer", "num_hidden_layers")):
        at = f"{body}h.{layer}"
        sheet.norm(f"{at}.input_layernorm", hidden)
        sheet.linear(f"{at}.self_attention.query_key_value", (3 * hidden, hidden), bias=True)
        sheet.linear(f"{at}.self_attention.dense", (hidden, hidden), bias=True)
        sheet.norm(f"{at}.post_attention_layernorm", hidden)
        sheet.linear(f"{at}.mlp.dense_h_to_4h", (4 * hidden, hidden), bias=True)
        sheet.linear(f"{at}.mlp.dense_4h_to_h", (hidden, 4 * hidden), bias=True)
    sheet.norm(f"{body}ln_f", hidden)
    is_tied = sheet.flag("tie_word_embeddings", default=True)
    return write_head(sheet, head, hidden, is_tied=is_tied, tokens="classifier")


def _falcon(sheet: Sheet, head: str) -> bool:
    hidden, heads = sheet.number("hidden_size"), sheet.number("num_attention_heads", "n_head")
    inner = sheet.number("ffn_hidden_size", default=4 * hidden)
    size = hidden // heads
    bias = sheet.flag("bias", default=False)
    is_new = sheet.flag("new_decoder_architecture", default=False)
    if is_new:
        fused = (2 * sheet.number("num_kv_heads", default=heads) + heads) * size
    else:
        fused = hidden + 2 * size if sheet.flag("multi_query", default=True) else 3 * hidden
    norms: tuple[str, ...]
    if not sheet.flag("parallel_attn", default=True):
        norms = ("post_attention_layernorm", "input_layernorm")
    elif sheet.number("num_ln_in_parallel_attn", default=2 if is_new else 1) == 2:
        norms = ("ln_attn", "ln_mlp")
    else:
        norms = ("input_layernorm",)
    body = body_of(head, "transformer")
    sheet.embedding(f"{body}word_embeddings", sheet.number("vocab_size"), hidden)
    for layer in range(sheet.layers("num_hidden_layers", "n_layer")):
        at = f"{body}h.{layer}"
        sheet.linear(f"{at}.self_attention.query_key_value", (fused, hidden), bias=bias)
        sheet.linear(f"{at}.self_attention.dense", (hidden, hidden), bias=bias)
        sheet.linear(f"{at}.mlp.dense_h_to_4h", (inner, hidden), bias=bias)
        sheet.linear(f"{at}.mlp.dense_4h_to_h", (hidden, inner), bias=bias)
        for name in norms:
            sheet.norm(f"{at}.{name}", hidden)
    sheet.norm(f"{body}ln_f", hidden)
    is_tied = sheet.flag("tie_word_embeddings", default=True)
    return write_head(sheet, head, hidden, is_tied=is_tied, tokens="classifier")


def _phi(sheet: Sheet, head: str) -> bool:
    hidden, inner = sheet.number("hidden_size"), sheet.number("intermediate_size")
    heads = sheet.number("num_attention_heads")
    groups = sheet.number("num_key_value_heads", default=heads)
    size = sheet.number("head_dim", default=hidden // heads)
    body = body_of(head, "model")
    sheet.embedding(f"{body}embed_tokens", sheet.number("vocab_size"), hidden)
    for layer in range(sheet.layers("num_hidden_layers")):
        at = f"{body}layers.{layer}"
        for name, outputs in (("q_proj", heads), ("k_proj", groups), ("v_proj", groups)):
            sheet.linear(f"{at}.self_attn.{name}", (outputs * size, hidden), bias=True)
        sheet.linear(f"{at}.self_attn.dense", (hidden, heads * size), bias=True)
        for name in ("q_layernorm", "k_layernorm") if sheet.flag("qk_layernorm", default=False) else ():
            sheet.norm(f"{at}.self_attn.{name}", hidden // heads)
        sheet.linear(f"{at}.mlp.fc1", (inner, hidden), bias=True)
        sheet.linear(f"{at}.mlp.fc2", (hidden, inner), bias=True)
        sheet.norm(f"{at}.input_layernorm", hidden)
    sheet.norm(f"{body}final_layernorm", hidden)
    is_tied = sheet.flag("tie_word_embeddings", default=False)
    return write_head(sheet, head, hidden, is_tied=is_tied, bias=True)


def _starcoder2(sheet: Sheet, head: str) -> bool:
    hidden, inner = sheet.number("hidden_size"), sheet.number("intermediate_size")
    heads = sheet.number("num_attention_heads")
    groups = sheet.number("num_key_value_heads", default=heads)
    size = sheet.number("head_dim", default=hidden // heads)
    bias = sheet.flag("use_bias", default=True)
    body = body_of(head, "model")
    sheet.embedding(f"{body}embed_tokens", sheet.number("vocab_size"), hidden)
    for layer in range(sheet.layers("num_hidden_layers")):
        at = f"{body}layers.{layer}"
        for name, outputs in (("q_proj", heads), ("k_proj", groups), ("v_proj", groups)):
            sheet.linear(f"{at}.self_attn.{name}", (outputs * size, hidden), bias=bias)
        sheet.linear(f"{at}.self_attn.o_proj", (hidden, heads * size), bias=bias)
        sheet.linear(f"{at}.mlp.c_fc", (inner, hidden), bias=bias)
        sheet.linear(f"{at}.mlp.c_proj", (hidden, inner), bias=bias)
        sheet.norm(f"{at}.input_layernorm", hidden)
        sheet.norm(f"{at}.post_attention_layernorm", hidden)
    sheet.norm(f"{body}norm", hidden)
    return write_head(sheet, head, hidden, is_tied=sheet.flag("tie_word_embeddings", default=True))


OLDER_DECODERS: Final[Mapping[str, Callable[[Sheet, str], bool]]] = {
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gptj": _gptj,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bloom": _bloom,
    "falcon": _falcon,
    "phi": _phi,
    "starcoder2": _starcoder2,
}
