"""Weights of encoder-decoders, and of the models that see and hear, as transformers has them.

Source of the shapes: the model classes of transformers 5 (``models/*/modeling_*.py``), which the tests build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_lab.domain.sheet import Sheet


def _t5(sheet: Sheet, head: str) -> bool:
    hidden, words = sheet.number("d_model"), sheet.number("vocab_size")
    layers = sheet.layers("num_layers")
    at = "transformer." if head in ("SequenceClassification", "TokenClassification") else ""
    has_decoder = not head.startswith(("Encoder", "TokenClassification"))
    sheet.embedding(f"{at}shared", words, hidden)
    sheet.embedding(f"{at}encoder.embed_tokens", words, hidden, is_tied=True)
    _t5_stack(sheet, f"{at}encoder", layers, ("SelfAttention",))
    if has_decoder:
        sheet.embedding(f"{at}decoder.embed_tokens", words, hidden, is_tied=True)
        decoders = sheet.layers("num_decoder_layers", default=max(layers, 1))
        _t5_stack(sheet, f"{at}decoder", decoders, ("SelfAttention", "EncDecAttention"))
    if head == "ConditionalGeneration":
        is_tied = sheet.flag("tie_word_embeddings", default=True)
        sheet.linear("lm_head", (words, hidden), is_tied=is_tied, is_output=True)
    elif head == "SequenceClassification":
        sheet.linear("classification_head.dense", (hidden, hidden), bias=True)
        sheet.linear("classification_head.out_proj", (sheet.labels, hidden), bias=True)
    elif head == "TokenClassification":
        sheet.linear("classifier", (sheet.labels, hidden), bias=True, is_output=True)
    elif head == "QuestionAnswering":
        sheet.linear("qa_outputs", (sheet.labels, hidden), bias=True)
    else:
        return head in ("Model", "EncoderModel")
    return True


def _t5_stack(sheet: Sheet, at: str, layers: int, attentions: tuple[str, ...]) -> None:
    hidden, inner, heads = sheet.number("d_model"), sheet.number("d_ff"), sheet.number("num_heads")
    width = heads * sheet.number("d_kv")
    is_gated = sheet.text("feed_forward_proj", "relu").startswith("gated")
    for layer in range(layers):
        here = f"{at}.block.{layer}.layer"
        for place, attention in enumerate(attentions):
            for name in ("q", "k", "v"):
                sheet.linear(f"{here}.{place}.{attention}.{name}", (width, hidden))
            sheet.linear(f"{here}.{place}.{attention}.o", (hidden, width))
            sheet.norm(f"{here}.{place}.layer_norm", hidden, bias=False)
        if layer == 0:
            buckets = sheet.number("relative_attention_num_buckets", default=32)
            sheet.embedding(f"{here}.0.SelfAttention.relative_attention_bias", buckets, heads)
        last = f"{here}.{len(attentions)}"
        for name in ("wi_0", "wi_1") if is_gated else ("wi",):
            sheet.linear(f"{last}.DenseReluDense.{name}", (inner, hidden))
        sheet.linear(f"{last}.DenseReluDense.wo", (hidden, inner))
        sheet.norm(f"{last}.layer_norm", hidden, bias=False)
    sheet.norm(f"{at}.final_layer_norm", hidden, bias=False)


def _attended_layers(sheet: Sheet, at: str, side: str, *, has_key_bias: bool) -> None:
    """Write the layers of BART and Whisper; a decoder's attend to the encoder too."""
    hidden, inner = sheet.number("d_model"), sheet.number(f"{side}_ffn_dim")
    attentions = ("self_attn", "encoder_attn") if side == "decoder" else ("self_attn",)
    for layer in range(sheet.layers(f"{side}_layers")):
        here = f"{at}{side}.layers.{layer}"
        for attention in attentions:
            for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
                bias = has_key_bias or name != "k_proj"
                sheet.linear(f"{here}.{attention}.{name}", (hidden, hidden), bias=bias)
            sheet.norm(f"{here}.{attention}_layer_norm", hidden)
        sheet.linear(f"{here}.fc1", (inner, hidden), bias=True)
        sheet.linear(f"{here}.fc2", (hidden, inner), bias=True)
        sheet.norm(f"{here}.final_layer_norm", hidden)


def _bart(sheet: Sheet, head: str) -> bool:
    hidden, words = sheet.number("d_model"), sheet.number("vocab_size")
    positions = sheet.number("max_position_embeddings") + 2
    at = "" if head == "Model" else "model."
    sheet.embedding(f"{at}shared", words, hidden)
    for side in ("encoder", "decoder"):
        sheet.embedding(f"{at}{side}.embed_tokens", words, hidden, is_tied=True)
        sheet.embedding(f"{at}{side}.embed_positions", positions, hidden)
        sheet.norm(f"{at}{side}.layernorm_embedding", hidden)
        _attended_layers(sheet, at, side, has_key_bias=True)
    if head == "ConditionalGeneration":
        is_tied = sheet.flag("tie_word_embeddings", default=True)
        sheet.linear("lm_head", (words, hidden), is_tied=is_tied, is_output=True)
    elif head == "SequenceClassification":
        labels = 3 if not sheet.value("id2label") and sheet.value("num_labels") is None else sheet.labels
        sheet.linear("classification_head.dense", (hidden, hidden), bias=True)
        sheet.linear("classification_head.out_proj", (labels, hidden), bias=True)
    else:
        return head == "Model"
    return True


def _whisper(sheet: Sheet, head: str) -> bool:
    hidden, words = sheet.number("d_model"), sheet.number("vocab_size")
    at = "" if head == "Model" else "model."
    sheet.conv(f"{at}encoder.conv1", (hidden, sheet.number("num_mel_bins", default=80), 3))
    sheet.conv(f"{at}encoder.conv2", (hidden, hidden, 3))
    sheet.embedding(f"{at}encoder.embed_positions", sheet.number("max_source_positions", default=1500), hidden)
    sheet.embedding(f"{at}decoder.embed_tokens", words, hidden)
    sheet.embedding(f"{at}decoder.embed_positions", sheet.number("max_target_positions", default=448), hidden)
    for side in ("encoder", "decoder"):
        _attended_layers(sheet, at, side, has_key_bias=False)
        sheet.norm(f"{at}{side}.layer_norm", hidden)
    if head == "ConditionalGeneration":
        is_tied = sheet.flag("tie_word_embeddings", default=True)
        sheet.linear("proj_out", (words, hidden), is_tied=is_tied, is_output=True)
        return True
    return head == "Model"


def _vit(sheet: Sheet, head: str) -> bool:
    hidden, inner = sheet.number("hidden_size"), sheet.number("intermediate_size")
    width = sheet.number("head_dim", default=hidden // sheet.number("num_attention_heads"))
    width *= sheet.number("num_attention_heads")
    image, patch = _pair(sheet, "image_size", 224), _pair(sheet, "patch_size", 16)
    patches = (image[0] // patch[0]) * (image[1] // patch[1])
    at = "" if head == "Model" else "vit."
    sheet.bare(f"{at}embeddings.cls_token", 1, 1, hidden)
    sheet.bare(f"{at}embeddings.position_embeddings", 1, patches + 1, hidden)
    channels = sheet.number("num_channels", default=3)
    sheet.conv(f"{at}embeddings.patch_embeddings.projection", (hidden, channels, *patch))
    bias = sheet.flag("qkv_bias", default=True)
    for layer in range(sheet.layers("num_hidden_layers")):
        here = f"{at}layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj"):
            sheet.linear(f"{here}.attention.{name}", (width, hidden), bias=bias)
        sheet.linear(f"{here}.attention.o_proj", (hidden, width), bias=True)
        sheet.norm(f"{here}.layernorm_before", hidden)
        sheet.norm(f"{here}.layernorm_after", hidden)
        sheet.linear(f"{here}.mlp.fc1", (inner, hidden), bias=True)
        sheet.linear(f"{here}.mlp.fc2", (hidden, inner), bias=True)
    sheet.norm(f"{at}layernorm", hidden)
    if head == "ImageClassification":
        sheet.linear("classifier", (sheet.labels, hidden), bias=True, is_output=True)
    elif head == "Model":
        sheet.linear("pooler.dense", (sheet.number("pooler_output_size", default=hidden), hidden), bias=True)
    else:
        return False
    return True


def _pair(sheet: Sheet, name: str, default: int) -> tuple[int, int]:
    """A size of two sides, or one number for both."""
    value: Any = sheet.value(name)
    is_pair = isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)
    if is_pair:
        return value[0], value[1]
    side = sheet.number(name, default=default)
    return side, side


SEQUENCE_MODELS: Final[Mapping[str, Callable[[Sheet, str], bool]]] = {
    "t5": _t5,
    "mt5": _t5,
    "bart": _bart,
    "whisper": _whisper,
    "vit": _vit,
}
