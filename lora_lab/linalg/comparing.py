"""What two or more updates are to each other entry by entry: their difference, and the signs on which they disagree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.errors import NumericalError, quoted
from lora_lab.linalg.spectra import triangular_factor
from lora_lab.linalg.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lora_lab.linalg.spectra import Pair

# Entries of one block of ΔW: 2 MiB in float64, near a processor's second-level cache; float32 counts so few exactly.
_BLOCK_ENTRIES: Final = 1 << 18
# Elements of one block of a stored tensor.
_TENSOR_ELEMENTS: Final = 1 << 20


class SignCounts(NamedTuple):
    """How many entries two updates, or several, have signs for, and where those differ.

    pair_shared : (n, n) float64, entries that are zero in neither of two
    pair_conflicts : (n, n) float64, those of them whose signs differ
    shared : entries that are zero in at most all but two
    conflicts : those of them where not all signs are the same
    """

    pair_shared: torch.Tensor
    pair_conflicts: torch.Tensor
    shared: int
    conflicts: int


class Difference(NamedTuple):
    """Two tensors and what lies between them.

    norm_a, norm_b : ‖·‖_F
    norm : ‖A − B‖_F
    """

    norm_a: float
    norm_b: float
    norm: float

    @property
    def relative(self) -> float | None:
        """‖A − B‖/max(‖A‖, ‖B‖), in [0, 2]; None when both are zero."""
        return relative_difference(self.norm, self.norm_a, self.norm_b)


def relative_difference(norm: float, norm_a: float, norm_b: float) -> float | None:
    """‖A − B‖/max(‖A‖, ‖B‖): 0 for equal ones, 1 where one is zero, 2 for opposite ones; None when both are zero.

    Examples
    --------
    >>> relative_difference(3.0, 0.0, 3.0), relative_difference(0.0, 0.0, 0.0) is None
    (1.0, True)
    """
    largest = max(norm_a, norm_b)
    return norm / largest if largest > 0.0 else None


def difference_norm(first: Pair, second: Pair) -> float:
    """Compute ‖ΔW₁ − ΔW₂‖_F of two factored updates of one shape, without the difference of two norms.

    The difference is one product of stacked factors, [s₁B₁, −s₂B₂]·[A₁; A₂], whose norm is that of the core R_B R_Aᵀ of
    their QR. For equal ranks the same product is taken as

        [s₁B₁ − s₂B₂, s₂B₂]·[A₁; A₁ − A₂],

    whose terms are as small as the factors are close: two equal pairs give 0, and two that differ in their last digits
    that difference itself, where ‖ΔW₁‖² + ‖ΔW₂‖² − 2⟨ΔW₁, ΔW₂⟩ would lose all below √ε·‖ΔW‖.

    Raises
    ------
    NumericalError
        a factor holds NaN or infinity, or the product exceeds the range of float64.

    Notes
    -----
    The error is of order r·ε·(‖s₁B₁ − s₂B₂‖‖A₁‖ + ‖s₂B₂‖‖A₁ − A₂‖) for equal ranks, r·ε·(‖s₁B₁‖‖A₁‖ + ‖s₂B₂‖‖A₂‖)
    otherwise. O((out + in)·(r₁ + r₂)²) time, O((out + in)·(r₁ + r₂)) memory in float64.

    Examples
    --------
    >>> from lora_lab.linalg.spectra import Pair
    >>> pair = Pair("q", torch.randn(2, 5), torch.randn(4, 2), 0.5)
    >>> difference_norm(pair, pair)
    0.0
    """
    B_1, A_1 = _scaled(first)
    B_2, A_2 = _scaled(second)
    if A_1.shape[0] == A_2.shape[0]:
        columns, rows = torch.cat((B_1 - B_2, B_2), dim=1), torch.cat((A_1, A_1 - A_2))
    else:
        columns, rows = torch.cat((B_1, -B_2), dim=1), torch.cat((A_1, A_2))
    with one_thread():
        core = triangular_factor(columns) @ triangular_factor(rows.T).T
        norm = float(torch.linalg.vector_norm(core))
    if not math.isfinite(norm):
        raise NumericalError(
            f"The factors of {quoted(first.name)} hold NaN or infinity, or their product exceeds the range of float64."
        )
    return norm


def sign_counts(
    pairs: Sequence[Pair], strengths: Sequence[float], *, rows: int | None = None, seed: int = 0
) -> SignCounts:
    """Count the entries of wᵢΔWᵢ on whose sign the updates disagree.

    ΔW is formed here, as signs are of entries and not of factors, but only a block of its rows at a time.

    Parameters
    ----------
    pairs : of ΔW of one shape
    strengths : wᵢ; only their signs matter, and whether they are 0
    rows : how many rows, drawn at random without replacement; all when None
    seed : of the draw

    Notes
    -----
    Entries are products in float64. O(n·out·in·r) time: for n = 2 and a 4096×4096 module of rank 16 some 40 ms on one
    core; O(n·2¹⁸) memory beyond the factors.
    """
    factors = []
    for pair, strength in zip(pairs, strengths, strict=True):
        sign = math.copysign(1.0, strength * pair.scaling) if strength * pair.scaling else 0.0
        lora_B = pair.lora_B.to("cpu", torch.float64) * sign
        factors.append((lora_B, pair.lora_A.to("cpu", torch.float64)))
    with one_thread():
        pair_shared, agreement, shared, conflicts = _tally(_sign_blocks(factors, rows, seed), len(pairs))
    pair_conflicts = (pair_shared - agreement) / 2
    if len(pairs) == 2:
        shared, conflicts = int(pair_shared[0, 1]), int(pair_conflicts[0, 1])
    return SignCounts(pair_shared, pair_conflicts, shared, conflicts)


def _tally(blocks: Iterable[torch.Tensor], count: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Entries that two have signs for, agreeing minus disagreeing ones, and the same of all where they are not two."""
    pair_shared, agreement = torch.zeros((2, count, count), dtype=torch.float64)
    shared = conflicts = 0
    for signs in blocks:
        present = signs.abs()
        agreement += signs @ signs.T
        pair_shared += present @ present.T
        if count > 2:
            signed, carried = signs.sum(dim=0).abs(), present.sum(dim=0)
            several = carried >= 2
            shared += int(several.sum())
            conflicts += int((several & (signed < carried)).sum())
    return pair_shared, agreement, shared, conflicts


def equal_numbers(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors have one shape and hold the same numbers, whatever their types; NaN is the same as NaN.

    Examples
    --------
    >>> equal_numbers(torch.tensor([0.5]), torch.tensor([0.5], dtype=torch.bfloat16))
    True
    """
    if first.shape != second.shape:
        return False
    if not (first.is_floating_point() or second.is_floating_point()):
        return torch.equal(first.to("cpu", torch.int64), second.to("cpu", torch.int64))
    return all(bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in _blocks(first, second))


def tensor_difference(first: torch.Tensor, second: torch.Tensor, *, name: str = "tensor") -> Difference:
    """Compute the norms of two stored tensors of one shape and of their difference, in float64, in blocks.

    Parameters
    ----------
    name : what an error calls them

    Raises
    ------
    NumericalError
        one of them holds NaN or infinity, or a norm exceeds the range of float64.

    Examples
    --------
    >>> tensor_difference(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])).norm
    5.0
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for a, b in _blocks(first, second):
        difference = a - b
        sums += torch.stack([part.dot(part) for part in (a, b, difference)])
    norm_a, norm_b, norm = sums.sqrt().tolist()
    if not math.isfinite(norm_a + norm_b + norm):
        raise NumericalError(f"A tensor of {quoted(name)} holds NaN or infinity, or exceeds the range of float64.")
    return Difference(norm_a, norm_b, norm)


def _blocks(first: torch.Tensor, second: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Both in float64, flattened, a block at a time."""
    flat_a, flat_b = first.flatten(), second.flatten()
    for start in range(0, len(flat_a), _TENSOR_ELEMENTS):
        block = slice(start, start + _TENSOR_ELEMENTS)
        yield flat_a[block].to("cpu", torch.float64), flat_b[block].to("cpu", torch.float64)


def _scaled(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """s·B and A in float64."""
    return pair.lora_B.to("cpu", torch.float64) * pair.scaling, pair.lora_A.to("cpu", torch.float64)


def _sign_blocks(
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]], rows: int | None, seed: int
) -> Iterator[torch.Tensor]:
    """Signs of the entries of every B·A, (n, entries) float32, a block of rows at a time, in memory used again."""
    outputs, inputs = factors[0][0].shape[0], factors[0][1].shape[1]
    step = min(outputs, max(1, _BLOCK_ENTRIES // max(inputs, 1)))
    entries = torch.empty((step, inputs), dtype=torch.float64)
    signs = torch.empty((len(factors), step, inputs), dtype=torch.float32)
    chosen = _chosen_rows(outputs, rows, seed)
    for start in range(0, len(chosen), step):
        of_rows = chosen[start : start + step]
        held = len(of_rows)
        for place, (lora_B, lora_A) in enumerate(factors):
            torch.mm(lora_B[of_rows], lora_A, out=entries[:held])
            signs[place, :held] = entries[:held].sign_()
        yield signs[:, :held].reshape(len(factors), -1)


def _chosen_rows(outputs: int, rows: int | None, seed: int) -> torch.Tensor:
    """Indices of the rows to look at, ascending."""
    if rows is None or rows >= outputs:
        return torch.arange(outputs)
    drawn = torch.randperm(outputs, generator=torch.Generator().manual_seed(seed))
    return drawn[:rows].sort().values
