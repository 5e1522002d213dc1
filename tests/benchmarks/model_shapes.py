"""Shapes (out, in) of the linear layers of well-known models, by their names within a layer."""

from __future__ import annotations


def llama(hidden: int, keys: int, inner: int) -> dict[str, tuple[int, int]]:
    """Seven projections of one layer."""
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


# Llama-3.2-1B, of 16 layers.
SMALL_HIDDEN, SMALL_KEYS, SMALL_INNER = 2048, 512, 8192
SMALL = llama(SMALL_HIDDEN, SMALL_KEYS, SMALL_INNER)
# Llama-2-7b, of 32 layers.
LARGE_HIDDEN, LARGE_LAYERS = 4096, 32
LARGE = llama(LARGE_HIDDEN, LARGE_HIDDEN, 11008)
