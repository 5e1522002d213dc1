"""What a device multiplies with, run on the processor: slices against float64, and both kernels against two sums."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.linalg import triton_swap
from lora_lab.linalg.device_swap import DeviceSwap, Recorded, Swaps, chosen, slices_of
from lora_lab.linalg.in_place import Change, ready, swap_all
from lora_lab.linalg.sliced import sliced
from lora_lab.linalg.triton_swap import may_swap, padded
from lora_lab.linalg.updates import Term, Update

NARROW = [torch.bfloat16, torch.float16]


def random(rows: int, columns: int, seed: int, size: float) -> torch.Tensor:
    return size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(
    st.sampled_from(NARROW),
    st.integers(1, 9),
    st.integers(0, 2**31),
    st.sampled_from([1e-6, 1e-3, 1.0, 300.0]),
    st.sampled_from([1e-5, 1.0]),
)
def test_slices_hold_what_float32_holds(dtype: torch.dtype, rank: int, seed: int, size_A: float, size_B: float) -> None:
    """To 2⁻²² of the largest possible element of the product, whatever the sizes of the factors."""
    A, B = random(rank, 11, seed, size_A), random(7, rank, seed + 1, size_B)
    made = sliced(A, B, dtype)
    found = made.scale * (made.lora_B.double() @ made.lora_A.double())
    bound = 2.0**-22 * rank * float(A.abs().max()) * float(B.abs().max()) * 4
    assert float((found - B.double() @ A.double()).abs().max()) <= bound
    wide = padded(made)
    assert len(wide.lora_A) in (16, 32, 64)
    assert torch.equal(wide.lora_B.double() @ wide.lora_A.double(), made.lora_B.double() @ made.lora_A.double())


@pytest.mark.parametrize("dtype", NARROW)
def test_factors_of_the_type_itself_are_one_slice(dtype: torch.dtype) -> None:
    """Then the product is exact in float32, and nothing is multiplied in vain; a zero factor has a zero product."""
    A, B = random(4, 6, 1, 0.01).to(dtype), random(5, 4, 2, 0.01).to(dtype)
    made = sliced(A.float(), B.float(), dtype)
    assert len(made.lora_A) == 4
    assert torch.equal(made.scale * (made.lora_B.double() @ made.lora_A.double()), B.double() @ A.double())
    nothing = sliced(torch.zeros(4, 6), B.float(), dtype)
    assert not (nothing.lora_B.double() @ nothing.lora_A.double()).any()


@pytest.mark.parametrize("dtype", NARROW)
def test_a_device_swap_is_a_swap(dtype: torch.dtype) -> None:
    """The bits of the tiles on the processor, but for elements that float32 puts on the other side of a tie."""
    shape = (130, 70)
    weight = random(*shape, 5, 1.0).to(dtype)
    terms = [Term(random(3, 70, seed, 0.1), random(130, 3, seed + 1, 0.1), 0.7) for seed in (1, 7)]
    old, new = (ready(Update("w", shape, [term])) for term in terms)
    found, wanted = weight.clone(), weight.clone()
    way = chosen([found], [slices_of(old, dtype)], [slices_of(new, dtype)], "cpu")
    assert not way.is_one_kernel
    assert "no Triton" in way.reason
    Recorded(lambda: way(found, slices_of(old, dtype), slices_of(new, dtype)), "cpu")()
    swap_all([Change(wanted, new, old)])
    assert float((found != wanted).double().mean()) < 5e-3
    assert torch.allclose(found.double(), wanted.double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    middle = (weight.double() - 0.7 * (terms[0].lora_B.double() @ terms[0].lora_A.double())).to(dtype)
    right = (middle.double() + 0.7 * (terms[1].lora_B.double() @ terms[1].lora_A.double())).to(dtype)
    assert float((found != right).double().mean()) < 5e-3


PROGRAM = """
import torch
from lora_lab.linalg.device_swap import DeviceSwap
from lora_lab.linalg.sliced import sliced
from lora_lab.linalg.triton_swap import padded
one, two = (DeviceSwap(is_one_kernel=which, reason="") for which in (True, False))
device = "cuda" if torch.cuda.is_available() else "cpu"
for dtype in (torch.bfloat16, torch.float16)[device == "cpu":]:  # its interpreter takes bfloat16 for integers
    for rows, columns in ((70, 150), (64, 128), (5, 3)):
        weight = torch.randn(rows, columns).to(dtype).to(device)
        parts = [
            padded(sliced(torch.randn(r, columns).to(device), 0.1 * torch.randn(rows, r).to(device), dtype))
            for r in (3, 5)
        ]
        found, wanted = weight.clone(), weight.clone()
        one(found, *parts)
        two(wanted, *parts)
        assert (found != wanted).double().mean() < 5e-3, (dtype, rows, columns)
        assert torch.allclose(found, wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-2)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with torch for CUDA")
def test_the_one_kernel_gives_what_two_multiplications_give() -> None:
    """On CUDA, or where there is none in Triton's interpreter."""
    root = Path(__file__).resolve().parents[2]
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", PROGRAM]
    environment = {**os.environ, **interpreted}
    ran = subprocess.run(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("is_by_kernels", [False, True])
def test_several_adapters_take_turns_in_several_weights(is_by_kernels: bool) -> None:
    """Recorded beforehand or not, from none to one to another to none."""
    shapes, ranks = [(40, 24), (8, 70)], (2, 3, 5)
    weights = [random(*shape, 3, 1.0).bfloat16() for shape in shapes]
    kept = [weight.clone() for weight in weights]
    terms = [[Term(random(r, shape[1], r, 0.1), random(shape[0], r, 9, 0.1), 0.5) for shape in shapes] for r in ranks]
    updates = [[ready(Update("w", shape, [one])) for shape, one in zip(shapes, own, strict=True)] for own in terms]
    swaps = Swaps(weights, updates, "cpu", recorded=[(0, 1), (None, 0)], is_by_kernels=is_by_kernels)
    assert ("cpu" in swaps.note) == is_by_kernels
    for old, new in ((None, 0), (0, 1), (1, 2), (2, None)):
        swaps(old, new)
        for weight, was, own in zip(weights, kept, [[one[place] for one in terms] for place in (0, 1)], strict=True):
            step = 0.5 * (own[new].lora_B.double() @ own[new].lora_A.double()) if new is not None else 0.0
            assert torch.allclose(weight.double(), was.double() + step, rtol=2**-7, atol=2**-7)


def test_weights_of_float32_are_summed_in_float32_and_never_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would cut their factors to fewer bits; and by blocks where torch itself was told to cut them."""
    shape = (40, 24)
    weight, one = random(*shape, 3, 1.0), Term(random(3, 24, 1, 0.1), random(40, 3, 2, 0.1), 0.5)
    update = ready(Update("w", shape, [one]))
    part = slices_of(update, torch.float32)
    assert part.lora_A.dtype == torch.float32
    assert not may_swap(part, part)
    found = weight.clone()
    monkeypatch.setattr(triton_swap, "usable", lambda device: True)
    swaps = Swaps([found], [[update]], "cpu", is_by_kernels=True)
    assert "takes no such factors" in swaps.note
    swaps(None, 0)
    right = weight.double() + 0.5 * (one.lora_B.double() @ one.lora_A.double())
    assert torch.allclose(found.double(), right, rtol=2**-22, atol=2**-22)
    assert swaps._is_for_kernels
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert not swaps._is_for_kernels


def test_factors_of_more_than_the_kernel_takes_are_left_as_they_are() -> None:
    """Two multiplications gain nothing from zeros."""
    made = sliced(random(300, 4, 1, 1.0).bfloat16().float(), random(5, 300, 2, 1.0).bfloat16().float(), torch.bfloat16)
    assert padded(made) is made
    assert not may_swap(made, made)


def test_a_kernel_that_cannot_be_compiled_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a compiler runs into, the two multiplications are there."""
    monkeypatch.setattr(triton_swap, "usable", lambda device: True)
    monkeypatch.setattr(triton_swap, "swap", lambda *_: 1 / 0)
    weight = random(4, 4, 1, 1.0).bfloat16()
    part = padded(sliced(random(2, 4, 2, 1.0), random(4, 2, 3, 1.0), torch.bfloat16))
    way = chosen([weight], [part], [part], "cuda:0")
    assert way == DeviceSwap(
        is_one_kernel=False, reason="two multiplications in place: Triton failed, ZeroDivisionError"
    )
    monkeypatch.setattr(triton_swap, "swap", lambda weight, taken, put: weight.add_(1.0))
    assert "wrong" in chosen([weight], [part], [part], "cuda:0").reason
