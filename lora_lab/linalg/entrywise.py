"""Several updates of one shape made one by what is said about their entries: the way from factors to factors.

The entries are those of ΔW itself, made in blocks of rows and never held, and the result is the best approximation of
one rank (:mod:`~lora_lab.linalg.approximation`). Or they are those of the core: with orthonormal bases U of all columns
of the lora_B side by side and V of all rows of the lora_A, each ΔW_t = U·M_t·Vᵀ without loss, and the entries are those
of the small M_t = UᵀΔW_t V. What is decided there is *not* what would be decided about the entries of ΔW; it costs
nothing, and the result loses nothing at rank Σr. U and V are the singular vectors of the stacked factors, as in Core
Space (arXiv 2509.17786): another choice of bases would have other entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import torch

from lora_lab.errors import CompatibilityError, LoraLabError, NumericalError, quoted
from lora_lab.linalg.approximation import low_rank_approximation
from lora_lab.linalg.consensus import Election, Majority, elected, summed
from lora_lab.linalg.counters import key_of
from lora_lab.linalg.entries import Entries, entries_of
from lora_lab.linalg.sparsifying import kept_by_chance, kept_by_rank, kept_largest, kept_middle
from lora_lab.linalg.spectra import Pair
from lora_lab.linalg.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.linalg.approximation import Approximation
    from lora_lab.linalg.changes import Rows


# One matrix keeps all processors busy: several at once would take their memory and no less time.
_one_at_a_time = Lock()


class Sparsity(StrEnum):
    """Which entries of each update are kept."""

    ALL = "all"
    LARGEST = "largest"
    MIDDLE = "middle"  # breadcrumbs: without the largest of all
    CHANCE = "chance"  # DARE
    RANK = "rank"  # DELLA: chance by rank within the row


class Space(StrEnum):
    """Whose entries they are."""

    DELTA = "delta"
    CORE = "core"


@dataclass(frozen=True, slots=True)
class EntryMethod:
    """What is done about entries.

    Parameters
    ----------
    sparsity : of each update by itself
    density : share of the entries that is kept, in [0, 1]
    gamma : share of the largest that breadcrumbs leaves out
    epsilon : by how much DELLA's probability varies around the density
    election : how signs are elected; None sums whatever is kept
    majority : what elects
    space : of which matrix the entries are
    seed : of chance
    """

    sparsity: Sparsity = Sparsity.LARGEST
    density: float = 0.5
    gamma: float = 0.01
    epsilon: float = 0.1
    election: Election | None = None
    majority: Majority = Majority.TOTAL
    space: Space = Space.DELTA
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.density <= 1.0:
            raise LoraLabError(f"The density is {self.density:g}, expected a share from 0 to 1.")
        if not 0.0 <= self.gamma <= 1.0:
            raise LoraLabError(f"gamma is {self.gamma:g}, expected a share from 0 to 1.")
        low, high = self.density - self.epsilon, self.density + self.epsilon
        if self.sparsity is Sparsity.RANK and self.density < 1.0 and (self.epsilon < 0 or low <= 0 or high > 1):
            raise LoraLabError(
                f"density ± epsilon is {low:g} and {high:g}, expected probabilities above 0 and up to 1.",
                hint="Choose a smaller epsilon.",
            )


class Combined(NamedTuple):
    """ΔW ≈ lora_B @ lora_A.

    lora_A : (r, in) float64
    lora_B : (out, r) float64
    norm : ‖D‖_F of the result before its rank was cut
    error : ‖D − lora_B @ lora_A‖_F
    excess : the error is at most 1 + excess times the least of this rank
    """

    lora_A: torch.Tensor
    lora_B: torch.Tensor
    norm: float
    error: float
    excess: float


def combine_entries(
    pairs: Sequence[Pair | Rows],
    strengths: Sequence[float],
    method: EntryMethod,
    *,
    rank: int | None = None,
    energy: float | None = None,
    look: Callable[[], None] | None = None,
) -> Combined:
    """Combine updates of one shape entry by entry, and give the best factors of the result.

    Parameters
    ----------
    pairs : of ΔW of one shape, of any ranks, or rows of what has no factors
    strengths : wᵢ
    rank : of the result; of ΔW's entries the sum of the ranks when neither this nor `energy` is given, of the core all
    energy : share of ‖D‖² that the result keeps, by the smallest rank that does
    look : called before every block, from several threads; an error that it raises ends the work

    Raises
    ------
    CompatibilityError
        the shapes differ, or the ranks of two factors.
    NumericalError
        a factor is not finite, or an entry exceeds the range of float32.

    Notes
    -----
    The result does not depend on the order of the updates, the names of anything, the division into blocks of rows or
    the number of threads. About 6 passes over n blocks of entries, each O(out·in·Σr); memory for some blocks, and
    O((out + in)·rank) float64.

    Examples
    --------
    >>> from lora_lab.linalg.spectra import Pair
    >>> pair = Pair("q", torch.ones(1, 3), torch.tensor([[2.0], [1.0]]), 1.0)
    >>> found = combine_entries([pair], [1.0], EntryMethod(density=0.5), rank=1)
    >>> (found.lora_B @ found.lora_A).round(decimals=6)
    tensor([[2., 2., 2.],
            [0., 0., 0.]], dtype=torch.float64)
    """
    _require_one_shape(pairs)
    keys, ordered, weights = _in_one_order(pairs, strengths, method.seed)
    name = pairs[0].name
    if method.space is Space.CORE:
        U, V, parts = _core(_factored_only(ordered))
        D = _decided(parts, weights, keys, method)
        found = low_rank_approximation(D.blocks(), rank=rank, energy=energy, name=name)
        return _factored(found._replace(U=U @ found.U, Vh=found.Vh @ V.T))
    with _one_at_a_time:
        D = _decided([_watched(_entries(part), look) for part in ordered], weights, keys, method)
        most = rank if rank is not None or energy is not None else sum(map(_rank, pairs))
        found = low_rank_approximation(D.blocks(), rank=most, energy=energy, seed=method.seed, name=name)
    return _factored(found)


def _in_one_order(
    pairs: Sequence[Pair | Rows], strengths: Sequence[float], seed: int
) -> tuple[list[int], list[Pair | Rows], list[float]]:
    """Keys of the updates, these and their strengths, in an order that follows from their numbers alone."""
    keyed = []
    for pair, strength in zip(pairs, strengths, strict=True):
        if isinstance(pair, Pair):
            _require_finite(pair)
        marks = (pair.lora_A, pair.lora_B) if isinstance(pair, Pair) else pair.marks
        keyed.append((key_of(seed, *marks, scaling=pair.scaling), strength, pair))
    keyed.sort(key=lambda one: one[:2])
    return [one[0] for one in keyed], [one[2] for one in keyed], [one[1] for one in keyed]


def _rank(part: Pair | Rows) -> int:
    return part.lora_A.shape[0] if isinstance(part, Pair) else part.rank


def _entries(part: Pair | Rows) -> Entries:
    if isinstance(part, Pair):
        return entries_of(part)

    def rows(first: int, end: int) -> torch.Tensor:
        block = part.rows(first, end).to(torch.float32)
        if not torch.isfinite(block).all():
            raise NumericalError(
                f"What the adapter does to {quoted(part.name)} holds NaN or infinity, or exceeds the range of float32.",
                hint="Training diverged, or a file is damaged.",
            )
        return block

    return Entries(part.shape, rows)


def _factored_only(parts: Sequence[Pair | Rows]) -> list[Pair]:
    found = [part for part in parts if isinstance(part, Pair)]
    if len(found) < len(parts):
        raise LoraLabError(
            f"What DoRA does to {quoted(parts[0].name)} has no factors, and so no core.", hint="Take the entries of ΔW."
        )
    return found


def _decided(parts: Sequence[Entries], weights: Sequence[float], keys: Sequence[int], method: EntryMethod) -> Entries:
    kept = [_sparse(part, key, method) for part, key in zip(parts, keys, strict=True)]
    if method.election is None:
        return summed(kept, weights)
    return elected(kept, weights, majority=method.majority, election=method.election)


def _watched(entries: Entries, look: Callable[[], None] | None) -> Entries:
    if look is None:
        return entries

    def rows(first: int, end: int) -> torch.Tensor:
        look()
        return entries.rows(first, end)

    return Entries(entries.shape, rows)


def _sparse(entries: Entries, key: int, method: EntryMethod) -> Entries:
    match method.sparsity:
        case Sparsity.LARGEST:
            return kept_largest(entries, method.density)
        case Sparsity.MIDDLE:
            return kept_middle(entries, method.density, method.gamma)
        case Sparsity.CHANCE:
            return kept_by_chance(entries, method.density, key)
        case Sparsity.RANK:
            return kept_by_rank(entries, method.density, method.epsilon, key)
    return entries


def _core(pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor, list[Entries]]:
    """U (out, k), V (in, l) and the entries of every UᵀΔW V."""
    with one_thread():
        wide = [
            (pair.lora_B.to("cpu", torch.float64) * pair.scaling, pair.lora_A.to("cpu", torch.float64))
            for pair in pairs
        ]
        U = _basis(torch.cat([lora_B for lora_B, _ in wide], dim=1))
        V = _basis(torch.cat([lora_A.T for _, lora_A in wide], dim=1))
        cores = [((U.T @ lora_B) @ (lora_A @ V)).to(torch.float32) for lora_B, lora_A in wide]
    return U, V, [_held(core) for core in cores]


def _held(core: torch.Tensor) -> Entries:
    return Entries((core.shape[0], core.shape[1]), lambda first, end: core[first:end].clone())


def _basis(stacked: torch.Tensor) -> torch.Tensor:
    """Left singular vectors of the columns, without those that rounding leaves."""
    Q, R = torch.linalg.qr(stacked)
    U, S, _ = torch.linalg.svd(R, full_matrices=False)
    least = float(S[0]) * max(stacked.shape) * torch.finfo(S.dtype).eps if len(S) else 0.0
    kept = S.gt(least)
    basis: torch.Tensor = Q @ U[:, kept]
    return basis


def _factored(found: Approximation) -> Combined:
    root = found.S.sqrt()
    return Combined(root[:, None] * found.Vh, found.U * root, found.norm, found.error, found.excess)


def _require_finite(pair: Pair) -> None:
    if not all(bool(torch.isfinite(factor).all()) for factor in (pair.lora_A, pair.lora_B)):
        raise NumericalError(
            f"The factors of {quoted(pair.name)} hold NaN or infinity, expected finite numbers.",
            hint="The training diverged, or the file is damaged.",
        )


def _require_one_shape(pairs: Sequence[Pair | Rows]) -> None:
    if not pairs:
        raise LoraLabError("There is nothing to combine, expected at least one update.")
    shapes = [(pair.lora_B.shape[0], pair.lora_A.shape[1]) if isinstance(pair, Pair) else pair.shape for pair in pairs]
    for pair, shape in zip(pairs, shapes, strict=True):
        if shape != shapes[0]:
            raise CompatibilityError(
                f"ΔW of {quoted(pair.name)} is {shape[0]}×{shape[1]}, expected {shapes[0][0]}×{shapes[0][1]} as in the "
                "first."
            )
