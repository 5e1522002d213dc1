"""Weights of the models that write text, with gated feed-forwards as LLaMA has them or with experts.

Source of the shapes: the model classes of transformers 5 (``models/*/modeling_*.py``), which the tests build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.domain.older_decoders import OLDER_DECODERS, body_of, write_head

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_lab.domain.sheet import Sheet


def _llama_like(
    sheet: Sheet,
    head: str,
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    has_head_norms: bool = False,
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm"),
    is_tied: bool = False,
    head_dim: int | None = None,
    is_fused: bool = False,
    feed_forward: Callable[[str, int], None] | None = None,
) -> bool:
    """Write a decoder with grouped-query attention and a gated feed-forward."""
    hidden, inner = sheet.number("hidden_size"), sheet.number("intermediate_size")
    heads = sheet.number("num_attention_heads")
    groups = sheet.number("num_key_value_heads", default=heads)
    size = sheet.number("head_dim", default=head_dim or hidden // heads)
    body = body_of(head, "model")
    sheet.embedding(f"{body}embed_tokens", sheet.number("vocab_size"), hidden)
    for layer in range(sheet.layers("num_hidden_layers")):
        at = f"{body}layers.{layer}"
        if is_fused:
            sheet.linear(f"{at}.self_attn.qkv_proj", ((heads + 2 * groups) * size, hidden))
            sheet.linear(f"{at}.mlp.gate_up_proj", (2 * inner, hidden))
            sheet.linear(f"{at}.mlp.down_proj", (hidden, inner))
        else:
            for name, outputs in (("q_proj", heads), ("k_proj", groups), ("v_proj", groups)):
                sheet.linear(f"{at}.self_attn.{name}", (outputs * size, hidden), bias=qkv_bias)
            if feed_forward:
                feed_forward(at, layer)
            else:
                _gated(sheet, at, hidden, inner, bias=mlp_bias)
        sheet.linear(f"{at}.self_attn.o_proj", (hidden, heads * size), bias=out_bias)
        for name in ("q_norm", "k_norm") if has_head_norms else ():
            sheet.norm(f"{at}.self_attn.{name}", size, bias=False)
        for name in norms:
            sheet.norm(f"{at}.{name}", hidden, bias=False)
    sheet.norm(f"{body}norm", hidden, bias=False)
    return write_head(sheet, head, hidden, is_tied=sheet.flag("tie_word_embeddings", default=is_tied))


_FOUR_NORMS: Final = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def _llama(sheet: Sheet, head: str) -> bool:
    bias = sheet.flag("attention_bias", default=False)
    mlp_bias = sheet.flag("mlp_bias", default=False)
    return _llama_like(sheet, head, qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)


def _mistral(sheet: Sheet, head: str) -> bool:
    return _llama_like(sheet, head)


def _qwen2(sheet: Sheet, head: str) -> bool:
    return _llama_like(sheet, head, qkv_bias=True)


def _qwen3(sheet: Sheet, head: str) -> bool:
    bias = sheet.flag("attention_bias", default=False)
    return _llama_like(sheet, head, qkv_bias=bias, out_bias=bias, has_head_norms=True, head_dim=128)


def _gemma(sheet: Sheet, head: str) -> bool:
    bias = sheet.flag("attention_bias", default=False)
    return _llama_like(sheet, head, qkv_bias=bias, out_bias=bias, is_tied=True, head_dim=256)


def _gemma2(sheet: Sheet, head: str) -> bool:
    bias = sheet.flag("attention_bias", default=False)
    return _llama_like(sheet, head, qkv_bias=bias, out_bias=bias, norms=_FOUR_NORMS, is_tied=True, head_dim=256)


def _phi3(sheet: Sheet, head: str) -> bool:
    return _llama_like(sheet, head, is_fused=True)


def _gemma3(sheet: Sheet, head: str) -> bool:
    bias = sheet.flag("attention_bias", default=False)
    return _llama_like(
        sheet,
        head,
        qkv_bias=bias,
        out_bias=bias,
        has_head_norms=True,
        norms=_FOUR_NORMS,
        is_tied=True,
        head_dim=256,
    )


def _mixtral(sheet: Sheet, head: str) -> bool:
    hidden, inner = sheet.number("hidden_size"), sheet.number("intermediate_size")
    experts = sheet.number("num_local_experts")

    def feed_forward(at: str, layer: int) -> None:
        del layer
        _experts(sheet, at, experts, hidden, inner)

    return _llama_like(sheet, head, feed_forward=feed_forward)


def _qwen3_moe(sheet: Sheet, head: str) -> bool:
    hidden, inner = sheet.number("hidden_size"), sheet.number("moe_intermediate_size")
    experts = sheet.number("num_experts", "num_local_experts")
    step = sheet.number("decoder_sparse_step", default=1)
    plain = sheet.value("mlp_only_layers")
    is_plain = frozenset(layer for layer in plain if isinstance(layer, int)) if isinstance(plain, list) else frozenset()
    dense = sheet.number("intermediate_size")

    def feed_forward(at: str, layer: int) -> None:
        if layer in is_plain or (layer + 1) % step:
            _gated(sheet, at, hidden, dense)
        else:
            _experts(sheet, at, experts, hidden, inner)

    bias = sheet.flag("attention_bias", default=False)
    return _llama_like(sheet, head, qkv_bias=bias, out_bias=bias, has_head_norms=True, feed_forward=feed_forward)


def _gated(sheet: Sheet, at: str, hidden: int, inner: int, *, bias: bool = False) -> None:
    for name in ("gate_proj", "up_proj"):
        sheet.linear(f"{at}.mlp.{name}", (inner, hidden), bias=bias)
    sheet.linear(f"{at}.mlp.down_proj", (hidden, inner), bias=bias)


def _experts(sheet: Sheet, at: str, experts: int, hidden: int, inner: int) -> None:
    """Write a router and its experts, each stack one parameter."""
    sheet.linear(f"{at}.mlp.gate", (experts, hidden))
    sheet.experts(f"{at}.mlp.experts.gate_up_proj", experts, 2 * inner, hidden, fused=2)
    sheet.experts(f"{at}.mlp.experts.down_proj", experts, hidden, inner)


DECODERS: Final[Mapping[str, Callable[[Sheet, str], bool]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    **OLDER_DECODERS,
}
