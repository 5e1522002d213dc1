"""Blocks and adapters against sums written out in float64; the check finds what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from lora_lab.benchmarks.latency import adapters
from lora_lab.benchmarks.latency.adapters import BASE, HOULSBY, MERGED, PFEIFFER, UNMERGED, VARIANTS
from lora_lab.benchmarks.latency.blocks import BlockShape, Noise, Stack, stack_of
from lora_lab.benchmarks.latency.checking import WRONG, faults_of
from lora_lab.errors import OperationError

PLAIN = BlockShape(24, 4, 4, 6, 40, is_gated=False, has_bias=True)
GATED = BlockShape(24, 4, 2, 8, 40, is_gated=True, has_bias=False)
TYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYERS, RANK, WIDTH = 3, 4, 6
Factors = list[dict[str, tuple[torch.Tensor, torch.Tensor]]]


def variants(shape: BlockShape, dtype: torch.dtype, seed: int = 0) -> tuple[dict[str, Stack], Factors]:
    """Every variant over one stack."""
    stack = stack_of(shape, LAYERS, device="cpu", dtype=dtype, seed=seed)
    noise = Noise("cpu", dtype, seed + 1)
    factors = adapters.factors_for(stack, ("q_proj", "v_proj"), RANK, noise)
    made = {
        BASE: stack,
        MERGED: adapters.merged(stack, factors),
        UNMERGED: adapters.unmerged(stack, factors),
        PFEIFFER: adapters.with_bottlenecks(stack, WIDTH, noise, is_double=False),
        HOULSBY: adapters.with_bottlenecks(stack, WIDTH, noise, is_double=True),
    }
    return made, factors


def by_hand(stack: Stack, x: torch.Tensor, factors: Factors | None = None) -> torch.Tensor:
    """The forward pass in float64: softmax and norms written out, ΔW a dense product."""
    shape = stack.shape
    values = {name: one.double() for name, one in stack.named_parameters()}
    x = x.double()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        if shape.is_gated:
            return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + 0 * values[f"{name}.weight"]

    for layer in range(len(stack.blocks)):

        def linear(x: torch.Tensor, name: str, layer: int = layer) -> torch.Tensor:
            weight = values[f"blocks.{layer}.{name}.weight"]
            if factors is not None and name in factors[layer]:
                A, B = factors[layer][name]
                weight = weight + B.double() @ A.double()
            out = torch.einsum("bli,oi->blo", x, weight)
            return out + values[f"blocks.{layer}.{name}.bias"] if shape.has_bias else out

        normed = norm(x, f"blocks.{layer}.attention_norm")
        q, k, v = (linear(normed, name) for name in ("q_proj", "k_proj", "v_proj"))
        heads = []
        for head in range(shape.heads):
            group = head * shape.kv_heads // shape.heads
            mine, theirs = (slice(place * shape.head_dim, (place + 1) * shape.head_dim) for place in (head, group))
            scores = q[..., mine] @ k[..., theirs].mT / math.sqrt(shape.head_dim)
            hidden = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
            heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[..., theirs])
        x = x + linear(torch.cat(heads, -1), "o_proj")
        normed = norm(x, f"blocks.{layer}.mlp_norm")
        up = linear(normed, "up_proj")
        if shape.is_gated:
            gate = linear(normed, "gate_proj")
            inner = gate * torch.sigmoid(gate) * up
        else:
            inner = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        x = x + linear(inner, "down_proj")
    return norm(x, "norm")


@pytest.mark.parametrize("shape", [PLAIN, GATED], ids=["plain", "gated"])
@pytest.mark.parametrize("name", [BASE, MERGED, UNMERGED])
def test_a_stack_computes_what_it_is_said_to(shape: BlockShape, name: str) -> None:
    """Attention, feed-forward and LoRA, against float64."""
    made, factors = variants(shape, torch.float32)
    x = torch.randn((2, 5, shape.hidden), generator=torch.Generator().manual_seed(3))
    right = by_hand(made[BASE], x, None if name == BASE else factors)
    with torch.inference_mode():
        out = made[name](x)
    # A few dozen roundings a layer, and sums over at most 40 products.
    limit = LAYERS * 40 * torch.finfo(torch.float32).eps
    assert float((out.double() - right).norm() / right.norm()) <= limit


def test_houlsby_is_two_layers_a_block_and_pfeiffer_one() -> None:
    """|Θ| of arXiv 2106.09685, section 5.1, without the norm: L·(2·d·m + m + d)."""
    made, factors = variants(PLAIN, torch.float32)
    d = PLAIN.hidden
    one = 2 * d * WIDTH + WIDTH + d
    half = 2 * d * (WIDTH // 2) + WIDTH // 2 + d
    added = {name: adapters.own_parameters(made[name], made[BASE]) for name in VARIANTS}
    assert added[BASE] == 0
    assert added[PFEIFFER] == LAYERS * (one + 2 * d)
    assert added[HOULSBY] == 2 * LAYERS * half
    assert added[UNMERGED] == sum(A.numel() + B.numel() for own in factors for A, B in own.values())
    with torch.inference_mode():
        h = torch.randn(2, d)
        layer = made[HOULSBY].blocks[0].after_attention
        adapters.fill_bottlenecks(made[HOULSBY], Noise("cpu", torch.float32, 5))
        down, up = layer.down, layer.up  # type: ignore[union-attr]
        narrow = h.double() @ down.weight.double().mT + down.bias.double()  # type: ignore[union-attr,operator]
        wide = 0.5 * narrow * (1 + torch.erf(narrow / math.sqrt(2)))
        right = h.double() + wide @ up.weight.double().mT  # type: ignore[union-attr,operator]
        assert torch.allclose(layer(h).double(), right, atol=1e-6)  # type: ignore[operator]


def test_what_no_variant_changes_is_there_once() -> None:
    """Memory of every parameter is the base's, but for merged weights."""
    made, _ = variants(GATED, torch.float32)
    shared = {one.data_ptr() for one in made[BASE].parameters()}
    for name in (UNMERGED, PFEIFFER, HOULSBY):
        assert shared <= {one.data_ptr() for one in made[name].parameters()}
    assert len(shared - {one.data_ptr() for one in made[MERGED].parameters()}) == 2 * LAYERS


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", [PLAIN, GATED, replace(GATED, hidden=96, inner=256)], ids=["plain", "gated", "wide"])
@pytest.mark.parametrize("seed", range(3))
def test_the_check_accepts_what_is_right(shape: BlockShape, dtype: torch.dtype, seed: int) -> None:
    """In every type that is measured."""
    made, factors = variants(shape, dtype, seed)
    assert list(faults_of(made, factors, seed)) == []


def broken(kind: str, made: Mapping[str, Stack]) -> str:
    """Break one variant and say which."""
    with torch.no_grad():
        if kind == "merged weight":
            weight = made[MERGED].blocks[1].q_proj.weight  # type: ignore[union-attr]
            weight[3, 5] += 0.01 * (1 + weight[3, 5].abs())  # type: ignore[index,operator]
            return MERGED
        if kind == "left out":
            block = made[UNMERGED].blocks[2]
            block.v_proj = block.v_proj.linear  # type: ignore[union-attr]
            return UNMERGED
        if kind == "way up":
            made[PFEIFFER].blocks[0].after_mlp.up.bias[0] = 0.5  # type: ignore[union-attr,index]
            return PFEIFFER
    made[HOULSBY].blocks[0].after_attention = torch.nn.Tanh()
    return HOULSBY


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("kind", ["merged weight", "left out", "way up", "other layer"])
def test_the_check_finds_what_is_wrong(kind: str, dtype: torch.dtype) -> None:
    """The variant that is wrong, and why."""
    made, factors = variants(GATED, dtype)
    wrong = broken(kind, made)
    found = dict(faults_of(made, factors, 0))
    assert wrong in found
    assert found[wrong].code == WRONG
    assert set(found) <= {wrong, UNMERGED} - ({MERGED} if wrong != MERGED else set())


def test_numbers_that_are_not_finite_are_refused() -> None:
    """Nothing is measured then."""
    made, factors = variants(PLAIN, torch.float16)
    with torch.no_grad():
        for block in adapters.blocks_of(made[BASE]):
            block.down_proj.bias.fill_(torch.finfo(torch.float16).max)
    with pytest.raises(OperationError, match="finite"):
        list(faults_of(made, factors, 0))


def test_weights_follow_from_the_seed_and_leave_the_global_generator_alone() -> None:
    """Other seeds, other weights; of about the standard deviation that keeps a signal's size."""
    state = torch.random.get_rng_state()
    one, again, other = (stack_of(PLAIN, 1, device="cpu", dtype=torch.float32, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [stack.blocks[0].up_proj.weight for stack in (one, again, other)]  # type: ignore[union-attr]
    assert torch.equal(weights[0], weights[1])  # type: ignore[arg-type]
    assert not torch.equal(weights[0], weights[2])  # type: ignore[arg-type]
    assert float(weights[0].std()) == pytest.approx(1 / math.sqrt(PLAIN.hidden), rel=0.1)  # type: ignore[operator]
    assert bool((one.norm.weight == 1).all())
