"""A stack of decoder blocks in plain torch, with places where adapters of any kind can be put.

x ← x + bottleneck(attention(norm(x))), x ← x + bottleneck(mlp(norm(x))), and a norm at the end; attention is causal
scaled dot-product attention with grouped keys and values, the feed-forward GELU's as in GPT-2 or SwiGLU's as in LLaMA.
Weights are drawn with a seed: what a matrix holds changes nothing about how long it takes to multiply by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

GPT2_MEDIUM_LAYERS: Final = 24
_DRAWN: Final = 1_048_573
_BIAS_SCALE: Final = 0.01


@dataclass(frozen=True, slots=True)
class BlockShape:
    """The sizes of one decoder block.

    hidden : width of what flows through
    heads, kv_heads, head_dim : of attention; heads a multiple of kv_heads
    inner : width of the feed-forward
    is_gated : SwiGLU with three matrices, else GELU with two
    has_bias : whether linear layers add one
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    is_gated: bool
    has_bias: bool

    @property
    def parameters(self) -> int:
        """Elements of the matrices of one block."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + self.hidden * self.inner * (3 if self.is_gated else 2)

    def factor_elements(self, targets: Sequence[str], rank: int) -> int:
        """Elements of A and B of some linear layers of one block.

        Examples
        --------
        >>> GPT2_MEDIUM.factor_elements(["q_proj", "v_proj"], 8)
        32768
        """
        outer, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {"q_proj": outer, "k_proj": kv, "v_proj": kv, "o_proj": outer}
        return sum(rank * (self.hidden + attention.get(target, self.inner)) for target in targets)


# d=1024, 16 heads: GPT-2 medium, on which table 1 of arXiv 2106.09685 was measured.
GPT2_MEDIUM: Final = BlockShape(1024, 16, 16, 64, 4096, is_gated=False, has_bias=True)


class Block(nn.Module):
    """One decoder block; ``after_attention`` and ``after_mlp`` are where layers of adapters go."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        hidden, bias = shape.hidden, shape.has_bias
        make_norm = nn.RMSNorm if shape.is_gated else nn.LayerNorm
        self.attention_norm, self.mlp_norm = make_norm(hidden), make_norm(hidden)
        self.q_proj = nn.Linear(hidden, shape.heads * shape.head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, shape.kv_heads * shape.head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden, shape.kv_heads * shape.head_dim, bias=bias)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, hidden, bias=bias)
        self.up_proj = nn.Linear(hidden, shape.inner, bias=bias)
        self.down_proj = nn.Linear(shape.inner, hidden, bias=bias)
        self.gate_proj = nn.Linear(hidden, shape.inner, bias=bias) if shape.is_gated else None
        self.after_attention: nn.Module = nn.Identity()
        self.after_mlp: nn.Module = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, hidden) to the same."""
        x = x + self.after_attention(self._attention(self.attention_norm(x)))
        out: torch.Tensor = x + self.after_mlp(self._mlp(self.mlp_norm(x)))
        return out

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self._by_head(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        out = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=self.shape.heads != self.shape.kv_heads
        )
        attended: torch.Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return attended

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], -1, self.shape.head_dim).transpose(1, 2)  # (batch, heads, length, head_dim)

    def _mlp(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate_proj is None:
            out: torch.Tensor = self.down_proj(functional.gelu(self.up_proj(x), approximate="tanh"))
        else:
            out = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Stack(nn.Module):
    """Blocks one after the other, with a norm at the end."""

    def __init__(self, shape: BlockShape, layers: int) -> None:
        super().__init__()
        self.shape = shape
        self.blocks = nn.ModuleList(Block(shape) for _ in range(layers))
        self.norm = (nn.RMSNorm if shape.is_gated else nn.LayerNorm)(shape.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, hidden) to the same."""
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.norm(x)
        return out


def stack_of(shape: BlockShape, layers: int, *, device: str, dtype: torch.dtype, seed: int) -> Stack:
    """A stack with random weights of standard deviation 1/√in and small biases, frozen.

    All elements come from one seeded drawing that is begun anew at another place for every parameter, which is many
    times quicker than drawing each. The global generator is neither used nor moved.
    """
    with torch.device("meta"):
        stack = Stack(shape, layers)
    stack = stack.to(dtype).to_empty(device=device).eval().requires_grad_(requires_grad=False)
    noise = Noise(device, dtype, seed)
    for name, parameter in stack.named_parameters():
        if "norm" in name:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            noise.fill(parameter, _BIAS_SCALE if parameter.dim() == 1 else 1.0 / math.sqrt(parameter.shape[1]))
    return stack


class Noise:
    """Normally distributed numbers, drawn once and dealt out over and over.

    The number of those drawn is prime, so that they come round at another column in every row of a matrix.
    """

    def __init__(self, device: str, dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(_DRAWN, generator=generator).to(device, dtype)
        self._at = 0

    def fill(self, target: torch.Tensor, scale: float) -> None:
        """Overwrite a contiguous `target` with the next numbers times `scale`."""
        flat = target.detach().view(-1)
        done = 0
        while done < len(flat):
            count = min(len(flat) - done, _DRAWN - self._at)
            torch.mul(self._pool[self._at : self._at + count], scale, out=flat[done : done + count])
            self._at = (self._at + count) % _DRAWN
            done += count
