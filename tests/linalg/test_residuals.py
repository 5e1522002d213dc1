"""Residuals that make unmerging exact: every bit comes back, from sums that no order can change, in few bytes."""

from __future__ import annotations

import itertools
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.errors import FileFormatError
from lora_lab.linalg import residual_coding
from lora_lab.linalg.residual_coding import ChunkEncoder, Sparse, chunk_count, decode, encode, entropy_bits
from lora_lab.linalg.residuals import ExactProduct, Inverse, residual_of, restore
from lora_lab.linalg.subtraction import doubt_about
from lora_lab.linalg.updates import Dense, Term, Update, apply_update

CODES = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(CODES[tensor.dtype])


def sparse(positions: list[int], values: list[int]) -> Sparse:
    return Sparse(np.array(positions, dtype=np.int64), np.array(values, dtype=np.int64))


# Units in the last place.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_code_has_its_place(dtype: torch.dtype) -> None:
    """Of all 65,536: the next number is one unit away, −0 is one below +0, and every pair comes back."""
    every = torch.arange(-32768, 32768).to(torch.int16).view(dtype)
    finite = every[torch.isfinite(every)]
    up = torch.nextafter(finite, torch.full_like(finite, torch.inf))
    steps = residual_of(up, finite)
    # Seen from −0 or from the greatest negative number, the next number up is −0's neighbour +0 or −0's own sign.
    is_usual = np.abs(finite.double().numpy()) > 0
    usual = np.isin(np.flatnonzero(is_usual), steps.positions)
    assert usual.all()
    assert set(steps.values[is_usual[steps.positions]].tolist()) <= {1}
    zeros = torch.tensor([0.0, -0.0], dtype=dtype)
    assert residual_of(zeros, zeros.flip(0)).values.tolist() == [1, -1]
    for shift in (1, 77, 32768, 65535):
        other = every.roll(shift)
        assert bits(restore(other.clone(), residual_of(every, other))).equal(bits(every))


@pytest.mark.parametrize("dtype", list(CODES))
@given(data=st.data())
def test_any_bits_come_back(dtype: torch.dtype, data: st.DataObject) -> None:
    """NaN, infinities, subnormal numbers, both zeros: a residual between any two tensors is exact."""
    width = torch.empty(0, dtype=dtype).element_size()
    wanted, found = (
        torch.frombuffer(bytearray(data.draw(st.binary(min_size=width * 5, max_size=width * 5))), dtype=dtype)
        for _ in range(2)
    )
    assert bits(restore(found.clone(), residual_of(wanted, found))).equal(bits(wanted))


# Sums that no order changes.


def widely(*shape: int, seed: int) -> torch.Tensor:
    """Rows and columns of very different size, some of them zero."""
    scales = torch.pow(10.0, 20 * random(shape[0], 1, seed=seed + 1).clamp(-1.5, 1.5))
    found = random(*shape, seed=seed) * scales
    found[0] = 0
    return found


@pytest.mark.parametrize("is_fine", [False, True])
@pytest.mark.parametrize("rank", [1, 16, 33, 700])
def test_no_order_changes_the_product(rank: int, is_fine: bool) -> None:
    """Any order of the rank, one product or many, threads or none: the same bits."""
    A, B = widely(rank, 23, seed=1), widely(40, rank, seed=5)
    there = ExactProduct(A, B, is_fine=is_fine).rows(0, 40)
    for seed in range(3):
        order = torch.randperm(rank, generator=torch.Generator().manual_seed(seed))
        shuffled = ExactProduct(A[order], B[:, order], is_fine=is_fine)
        assert shuffled.rows(0, 40).equal(there)
        assert torch.cat([shuffled.rows(row, row + 1) for row in range(40)]).equal(there)


def test_the_product_is_exact() -> None:
    """Every element is the correctly rounded sum of its products, summed one by one, backwards, or exactly."""
    A, B = random(48, 9, seed=1), random(7, 48, seed=2)
    product = ExactProduct(A, B, is_fine=False)
    found, a, b = product.rows(0, 7), product._A.numpy(), product._B.numpy()
    for i in range(7):
        for j in range(9):
            products = [float(x * y) for x, y in zip(b[i], a[:, j], strict=True)]
            assert math.fsum(products) == sum(products) == sum(products[::-1]) == float(found[i, j])


@pytest.mark.parametrize(("is_fine", "exponent"), [(False, 24), (True, 46)])
def test_the_product_is_near(is_fine: bool, exponent: int) -> None:
    """2^−p of the largest elements is all that the grid takes, twice p with two slices."""
    A, B = random(16, 50, seed=1), random(60, 16, seed=2)
    found = ExactProduct(A, B, is_fine=is_fine).rows(0, 60)
    largest = B.abs().amax(dim=1, keepdim=True) * A.abs().amax(dim=0)
    assert ((found - B @ A).abs() <= 4 * 16 * largest * 2.0**-exponent).all()


# Round trips.


def kinds(shape: tuple[int, int]) -> dict[str, tuple[list[Term], list[Dense]]]:
    rows, columns = shape
    plain = Term(random(4, columns, seed=1), random(rows, 4, seed=2), 0.1, 0.7)
    dora = plain._replace(magnitude=3 + random(rows, seed=3), lora_A=random(4, columns, seed=4), strength=0.6)
    turned = dora._replace(magnitude=3 + random(columns, seed=5), is_by_column=True)
    tokens = torch.tensor([0, 5, 17])
    return {
        "plain": ([plain], []),
        "nothing": ([], []),
        "dora": ([dora], []),
        "dora by column": ([turned], []),
        "all": ([plain, dora, turned], [Dense(random(rows, columns, seed=6), 0.25)]),
        "saved": ([], [Dense(random(rows, columns, seed=6), 1.0)]),
        "added": ([plain], [Dense(random(rows, columns, seed=7), 0.5, is_target=False)]),
        "tokens": ([plain], [Dense(random(3, columns, seed=8), 1.0, rows=tokens)]),
    }


@pytest.mark.parametrize("kind", list(kinds((1, 1))))
@pytest.mark.parametrize("dtype", list(CODES))
def test_whatever_was_done_comes_back(dtype: torch.dtype, kind: str) -> None:
    """Planted zeros of both signs, subnormal, huge and tiny weights included; seen in one block or in many."""
    terms, dense = kinds((29, 31))[kind]
    before = random(29, 31).to(dtype)
    info = torch.finfo(dtype)
    before.view(-1)[:6] = torch.tensor(
        [0.0, -0.0, info.tiny / 4, -info.tiny / 4, info.max / 64, -info.tiny], dtype=dtype
    )
    update = Update("w", (29, 31), terms, dense)
    after = before.clone()
    apply_update(after, update)
    inverse = Inverse(update, dtype)
    gains = update.row_gains(before, 0)
    residual = residual_of(before, inverse.predicted(after, 0, gains))
    again = Update("w", (29, 31), terms, dense)
    told = Inverse(again, dtype, inverse.column_gains)
    split = torch.cat([told.predicted(after[row : row + 4], row, gains[row : row + 4]) for row in range(0, 29, 4)])
    assert bits(restore(split, residual)).equal(bits(before))
    if kind == "nothing":
        # Where nothing is added −0 stays −0; a product that is added, empty or not, makes it +0.
        assert residual.positions.tolist() == ([1] if dtype == torch.float64 else [])
    assert len(residual.positions) < before.numel()


def test_dora_is_no_harder_than_a_plain_delta() -> None:
    """With its gains at hand a weight that DoRA multiplied is predicted as well as one that it added to."""
    before = random(64, 256).to(torch.bfloat16)
    shares = []
    for magnitude in (None, torch.linalg.vector_norm(before.double(), dim=1) * 1.01):
        term = Term(random(4, 256, seed=1), 0.005 * random(64, 4, seed=2), 1.0, 1.0, magnitude)
        update = Update("w", (64, 256), [term])
        after = before.clone()
        apply_update(after, update)
        predicted = Inverse(update, torch.bfloat16).predicted(after, 0, update.row_gains(before, 0))
        shares.append(len(residual_of(before, predicted).positions) / before.numel())
    assert shares[1] < 2 * shares[0] + 0.01


def test_the_entropy_is_the_known_one() -> None:
    """bf16 at ‖ΔW‖/‖W‖ = 0.01: 0.123 bits a weight, and 1.3 hundredths of the elements; the code stays within 1.1×."""
    weight = (0.02 * random(1024, 1024)).to(torch.bfloat16)
    A, B = random(16, 1024, seed=1), random(1024, 16, seed=2)
    B *= 0.01 * weight.double().norm() / (B @ A).norm()
    update = Update("w", (1024, 1024), [Term(A, B, 1.0)])
    after = weight.clone()
    apply_update(after, update)
    none = torch.empty((1024, 0), dtype=torch.float64)
    residual = residual_of(weight, Inverse(update, torch.bfloat16).predicted(after, 0, none))
    entropy = entropy_bits(residual, weight.numel())
    assert entropy == pytest.approx(0.123, rel=0.03)
    assert len(residual.positions) / weight.numel() == pytest.approx(0.013, rel=0.05)
    assert 8 * len(encode(residual, weight.numel(), 16)) / weight.numel() <= 1.1 * entropy


# The code.


@given(data=st.data(), width=st.sampled_from([16, 32, 64]))
def test_any_numbers_come_back(data: st.DataObject, width: int) -> None:
    """Few or many, small or of the whole range, at the ends or in the middle."""
    elements = data.draw(st.integers(1, 3000))
    positions = sorted(data.draw(st.sets(st.integers(0, elements - 1))))
    edge = 1 << (width - 1)
    number = st.one_of(st.integers(-3, 3), st.integers(-edge, edge - 1), st.sampled_from([-edge, edge - 1, 127, -129]))
    values = [data.draw(number) or 1 for _ in positions]
    content = encode(sparse(positions, values), elements, width)
    found = decode(content, elements, width)
    assert (found.positions.tolist(), found.values.tolist()) == (positions, values)
    assert len(content) <= elements * width / 8 * 1.25 + 128


@pytest.mark.parametrize("share", [1e-5, 1e-3, 0.01, 0.1, 0.3, 0.6, 1.0])
def test_the_code_is_near_the_entropy(share: float) -> None:
    """Within 1.3× of the zeroth-order entropy, from nearly nothing to everything; dozens of bytes are for the frame."""
    generator = np.random.default_rng(1)
    elements = 1 << 19
    is_there = generator.random(elements) < share
    count = int(is_there.sum())
    values = np.sign(generator.standard_normal(count)) * generator.geometric(0.6, count)
    found = Sparse(np.flatnonzero(is_there), values.astype(np.int64))
    content = encode(found, elements, 16)
    assert 8 * (len(content) - 64) / elements <= 1.3 * entropy_bits(found, elements)
    again = decode(content, elements, 16)
    assert (again.positions == found.positions).all()
    assert (again.values == found.values).all()


def test_pieces_of_any_size_make_the_same_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks across the borders of chunks, and stretches that nobody mentions."""
    monkeypatch.setattr(residual_coding, "CHUNK_ELEMENTS", 100)
    positions = np.array([0, 99, 100, 101, 355, 701])
    values = np.array([1, -1, 2, 3, 4, 5])
    made = []
    for pieces in ([0, 1005], [0, 7, 99, 100, 350, 360, 1005], [0, 250, 400, 700, 702, 1005]):
        encoder = ChunkEncoder(1005, 16)
        chunks = []
        for first, end in itertools.pairwise(pieces):
            low, high = np.searchsorted(positions, [first, end])
            chunks += encoder.put(first, Sparse(positions[low:high] - first, values[low:high]))
        chunks += encoder.finish()
        assert encoder.sizes == [len(chunk) for chunk in chunks]
        made.append(chunks)
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == chunk_count(1005) == 11
    found = [decode(chunk, min(100, 1005 - 100 * number), 16) for number, chunk in enumerate(made[0])]
    assert np.concatenate([one.positions + 100 * number for number, one in enumerate(found)]).tolist() == list(
        positions
    )
    assert np.concatenate([one.values for one in found]).tolist() == list(values)


SAMPLE = encode(sparse([1, 5, 600, 999], [1, -1, 700, 3]), 1000, 16)
DENSE = encode(sparse(list(range(900)), [1, -2, 300] * 300), 1000, 16)


@pytest.mark.parametrize("content", [SAMPLE, DENSE], ids=["sparse", "dense"])
def test_cut_short_is_refused(content: bytes) -> None:
    """At every byte, and with one too many."""
    for end in range(len(content)):
        with pytest.raises(FileFormatError, match="damaged"):
            decode(content[:end], 1000, 16)
    with pytest.raises(FileFormatError, match="damaged"):
        decode(content + b"\0", 1000, 16)


@given(data=st.data(), content=st.sampled_from([SAMPLE, DENSE]))
def test_other_bytes_are_refused_or_harmless(data: st.DataObject, content: bytes) -> None:
    """Whatever is written over it: refused in one way, or numbers within their bounds."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(changed), 1000, 16)
    except FileFormatError:
        return
    assert len(found.positions) == len(found.values) <= 1000
    assert len(found.positions) == 0 or (found.positions[0] >= 0 and found.positions[-1] < 1000)
    assert (np.diff(found.positions) > 0).all()


def test_a_bomb_is_refused() -> None:
    """A chunk that would inflate to more than its numbers need is not inflated."""
    bomb = residual_coding._deflated(np.zeros(1 << 26, dtype=np.uint8))
    head = residual_coding._HEAD
    for mode, lengths in ((2, (0, len(bomb), 0)), (1, (len(bomb), 0, 0))):
        with pytest.raises(FileFormatError, match="damaged"):
            decode(head.pack(mode, 0, 10, *lengths) + bomb, 1000, 16)
    with pytest.raises(FileFormatError, match="damaged"):
        decode(head.pack(1, 0, (1 << 32) - 1, 0, 0, 0), 1000, 16)


# What subtraction cannot know.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0.01, 0.1, 1.0])
def test_the_doubt_is_right(dtype: torch.dtype, ratio: float) -> None:
    """As many elements as expected come back changed, and none is further off than the bound."""
    shape = (256, 512)
    weight = (0.02 * random(*shape)).to(dtype)
    A, B = random(8, 512, seed=1), random(256, 8, seed=2)
    B *= ratio * weight.double().norm() / (B @ A).norm()
    merged, back = weight.clone(), torch.empty_like(weight)
    apply_update(merged, Update("w", shape, [Term(A, B, 1.0)]))
    apply_update(back, Update("w", shape, [Term(A, B, -1.0)]), kept=merged)
    doubt = doubt_about(merged, back)
    error = (back.double() - weight.double()).numpy()
    found = (error != 0).mean()
    assert doubt.expected_fraction is not None
    assert doubt.relative_bound is not None
    assert doubt.expected_fraction / 1.1 <= found <= 1.15 * doubt.expected_fraction
    size = np.linalg.norm(weight.double().numpy())
    assert np.linalg.norm(error) <= doubt.relative_bound * size


def test_threads_do_not_matter() -> None:
    """Predictions have the same bits with one thread as with many."""
    term = Term(random(16, 300, seed=1), random(200, 16, seed=2), 1.0)
    inverse = Inverse(Update("w", (200, 300), [term]), torch.float32)
    after = random(200, 300).float()
    none = torch.empty((200, 0), dtype=torch.float64)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, min(4, os.cpu_count() or 1)):
            torch.set_num_threads(threads)
            found.append(inverse.predicted(after, 0, none))
    finally:
        torch.set_num_threads(before)
    assert found[0].equal(found[1])
