"""A small decoder in the Llama layout, in plain torch.

Module names and arithmetic are those of ``transformers.LlamaForCausalLM``, so that an adapter trained here fits there:
RMS norm, rotary positions, grouped-query attention, SwiGLU, the output tied to the embedding.
Source: Touvron et al. 2023 (arXiv 2302.13971); Ainslie et al. 2023 (arXiv 2305.13245) for the grouped queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu


@dataclass(frozen=True)
class Shape:
    """Sizes of the decoder; ``config.json`` follows from them."""

    vocabulary: int = 1536
    hidden: int = 384
    layers: int = 4
    heads: int = 6
    key_value_heads: int = 2
    intermediate: int = 640
    longest: int = 128
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    def config(self) -> dict[str, Any]:
        """The document ``config.json`` that transformers reads."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "head_dim": self.head,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.longest,
            "mlp_bias": False,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.key_value_heads,
            "rms_norm_eps": self.norm_epsilon,
            "rope_theta": self.rope_base,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocabulary,
        }


class RmsNorm(nn.Module):
    """``x / sqrt(mean(x²) + ε) · weight`` over the last axis."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)


class Attention(nn.Module):
    """Causal attention; each key and value head serves ``heads / key_value_heads`` query heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.width = shape.head
        self.group = shape.heads // shape.key_value_heads
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.key_value_heads * shape.head, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.key_value_heads * shape.head, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape

        def split(projected: torch.Tensor) -> torch.Tensor:
            return projected.view(batch, length, -1, self.width).transpose(1, 2)  # (batch, heads, length, width)

        query = rotated(split(self.q_proj(x)), cosine, sine)
        key = rotated(split(self.k_proj(x)), cosine, sine).repeat_interleave(self.group, dim=1)
        value = split(self.v_proj(x)).repeat_interleave(self.group, dim=1)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    """``down(silu(gate(x)) · up(x))``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each on the normed stream and added to it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = RmsNorm(shape.hidden, shape.norm_epsilon)
        self.post_attention_layernorm = RmsNorm(shape.hidden, shape.norm_epsilon)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Everything below the output: what transformers calls ``model``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RmsNorm(shape.hidden, shape.norm_epsilon)


class Decoder(nn.Module):
    """Tokens in, logits out.

    Parameters
    ----------
    shape : sizes
    generator : source of the initial weights, N(0, 0.02²)
    """

    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() == 2:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
        even = torch.arange(0, shape.head, 2, dtype=torch.float32) / shape.head
        angles = torch.outer(torch.arange(shape.longest, dtype=torch.float32), 1.0 / shape.rope_base**even)
        angles = torch.cat((angles, angles), dim=-1)  # (longest, head)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, tokens: torch.Tensor, scored: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of tokens (batch, length); padding belongs on the right.

        (batch, length, vocabulary), or (scored positions, vocabulary) where the mask `scored` (batch, length) says
        which positions are wanted.
        """
        x = self.model.embed_tokens(tokens)
        cosine, sine = self.cosine[: tokens.shape[1]], self.sine[: tokens.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cosine, sine)
        return linear(self.model.norm(x if scored is None else x[scored]), self.model.embed_tokens.weight)


def rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """`x` (batch, heads, length, width) with the two halves of its width turned by the position's angle."""
    low, high = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-high, low), dim=-1) * sine
