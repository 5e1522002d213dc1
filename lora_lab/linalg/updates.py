"""W′ = W + Σ wᵢ(W′ᵢ − W), a block of rows at a time and rounded once: one definition of every bit.

The weight is taken into float64, one product of stacked factors, Σ wᵢ·sᵢ·BᵢAᵢ, is accumulated onto it there (a weight
of float64 is added to it), and the sum is rounded into the stored type (a type of 16 bits by way of float32, which
moves a tie at most). In float64 the order in which the rank is summed moves the sum by 10⁻¹⁶, far below what is stored,
so that the result does not depend on threads or blocks in practice; and as blocks are of fixed size, each computed by
one thread, it does not in principle either.

DoRA's W′ = m ⊙ (W + ΔW)/‖W + ΔW‖ is a whole weight; what it adds to the sum is w·(W′ − W). Sources: arXiv 2106.09685,
section 4.1; arXiv 2402.09353, equation 5.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.errors import CompatibilityError, quoted
from lora_lab.linalg.rounding import Rounding, block_generator
from lora_lab.linalg.storing import Fidelity, stored_rows
from lora_lab.linalg.threads import in_lanes, worker_count
from lora_lab.linalg.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Elements of a block: its float64 sum and stored rows stay in a processor's caches, and one call is worth its cost.
BLOCK_ELEMENTS: Final = 1 << 18


class Term(NamedTuple):
    """One adapter's factored part in one weight, oriented as the base stores it.

    lora_A : (r, in), float of any width
    lora_B : (out, r), float of any width
    scaling : of the adapter: ΔW = scaling · lora_B @ lora_A
    strength : what the person multiplies the adapter by
    magnitude : of DoRA: (out,), or (in,) with `is_by_column`; None without
    is_by_column : whether DoRA's norms run down the columns, as where a weight is stored transposed
    """

    lora_A: torch.Tensor
    lora_B: torch.Tensor
    scaling: float
    strength: float = 1.0
    magnitude: torch.Tensor | None = None
    is_by_column: bool = False


class Dense(NamedTuple):
    """One adapter's dense part in one weight.

    values : (n, in), float of any width
    strength : what the person multiplies the adapter by
    is_target : whether the values take the weight's place, W′ᵢ − W being added, or are added themselves
    rows : (n,) int64 ascending, which rows they are; None for all
    """

    values: torch.Tensor
    strength: float = 1.0
    is_target: bool = True
    rows: torch.Tensor | None = None

    def within(self, first: int, end: int) -> tuple[slice | torch.Tensor, torch.Tensor]:
        """Which of the rows from `first` to before `end` it is about, counted from `first`, and its values there."""
        if self.rows is None:
            return slice(None), self.values[first:end]
        low, high = torch.searchsorted(self.rows, self.rows.new_tensor([first, end])).tolist()
        return self.rows[low:high] - first, self.values[low:high]

    def to(self, device: torch.device) -> Dense:
        """The same on `device`."""
        return self._replace(values=self.values.to(device), rows=None if self.rows is None else self.rows.to(device))


class Update:
    """The sum of several parts on one weight of shape (out, in), by blocks of rows.

    Where :attr:`needs_columns` says so, :meth:`look` must have seen every row of the unchanged weight before the first
    :meth:`delta`.

    Raises
    ------
    CompatibilityError
        a part does not make a matrix of `shape`.
    """

    def __init__(self, name: str, shape: tuple[int, int], terms: Sequence[Term], dense: Sequence[Dense] = ()) -> None:
        for term in terms:
            made = (term.lora_B.shape[0], term.lora_A.shape[1])
            if made != shape:
                raise CompatibilityError(f"ΔW of {quoted(name)} is {made}, expected the weight's {shape}.")
        self.name = name
        self.shape = shape
        self._A, self._B = _stacked([term for term in terms if term.magnitude is None], shape)
        self._dora = [_Dora(term, shape) for term in terms if term.magnitude is not None]
        self._dense = tuple(dense)

    @property
    def needs_columns(self) -> bool:
        """Whether norms of whole columns are needed."""
        return any(dora.term.is_by_column for dora in self._dora)

    @property
    def plain_factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (R, in) and B (out, R) of the sum of all plain deltas, float64, scalings and strengths in B."""
        return self._A, self._B

    @property
    def is_plain(self) -> bool:
        """Whether it is those factors and nothing else."""
        return not self._dora and not self._dense

    @property
    def dense(self) -> tuple[Dense, ...]:
        """Its dense parts."""
        return self._dense

    @property
    def scaled_terms(self) -> tuple[Term, ...]:
        """Terms of DoRA, whose W′ multiplies the weight."""
        return tuple(dora.term for dora in self._dora)

    def row_gains(self, rows: torch.Tensor, first: int) -> torch.Tensor:
        """m/‖W + ΔW‖ of DoRA for the rows from `first` on of the unchanged weight, (n, terms by row) float64."""
        gains = [dora.gain(dora.moved(rows, first), first) for dora in self._dora if not dora.term.is_by_column]
        return torch.cat([rows.new_empty((rows.shape[0], 0), dtype=torch.float64), *gains], dim=1)

    def column_gains(self) -> torch.Tensor:
        """The same down the columns, (terms by column, in) float64, from all that :meth:`look` has seen."""
        gains = [dora.gain(dora.squares[:0], 0) for dora in self._dora if dora.term.is_by_column]
        return torch.cat([torch.empty((0, self.shape[1]), dtype=torch.float64), *gains])

    def to(self, device: torch.device) -> Update:
        """The same on `device`, with what :meth:`look` has seen; itself where it is there."""
        if self._A.device == device:
            return self
        moved = Update(self.name, self.shape, (), [dense.to(device) for dense in self._dense])
        moved._A, moved._B = self._A.to(device), self._B.to(device)
        moved._dora = [dora.to(device) for dora in self._dora]
        return moved

    @property
    def rows_at_once(self) -> int:
        """Rows of one block; a property of the shape alone."""
        return max(1, BLOCK_ELEMENTS // max(1, self.shape[1]))

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Number, first row and end of every block."""
        step = self.rows_at_once
        for block, first in enumerate(range(0, self.shape[0], step)):
            yield block, first, min(self.shape[0], first + step)

    def forget(self) -> None:
        """Forget the rows that were looked at: others follow."""
        for dora in self._dora:
            dora.squares.zero_()

    def look(self, rows: torch.Tensor, first: int) -> None:
        """Take the rows from `first` on of the unchanged weight into the norms of the columns, in order."""
        for dora in self._dora:
            if dora.term.is_by_column:
                dora.squares += dora.moved(rows, first).square().sum(dim=0)

    def delta(self, rows: torch.Tensor, first: int, *, space: Workspace | None = None) -> torch.Tensor:
        """What is added to the rows from `first` on.

        Parameters
        ----------
        rows : (n, in), of the unchanged weight, float of any width
        space : to make it in, as its buffer "delta"; in memory of its own when not given

        Returns
        -------
        (n, in) float64
        """
        total = (space or Workspace()).take("delta", (rows.shape[0], rows.shape[1]), torch.float64, rows.device)
        if len(self._A):
            torch.mm(self._B[first : first + rows.shape[0]], self._A, out=total)  # (n, R)(R, in)
        else:
            total.zero_()
        return self._add_others(total, rows, first)

    def moved(self, rows: torch.Tensor, first: int, *, space: Workspace | None = None) -> torch.Tensor:
        """W + Σ wᵢ(W′ᵢ − W) of the rows from `first` on, before it is rounded.

        Parameters
        ----------
        rows : (n, in), of the unchanged weight, float of any width
        space : to make it in, as its buffer "moved" or "delta"; in memory of its own when not given

        Returns
        -------
        (n, in) float64
        """
        if rows.dtype == torch.float64:  # onto which every product would be rounded
            return self.delta(rows, first, space=space).add_(rows)
        total = (space or Workspace()).converted("moved", rows, torch.float64)
        if len(self._A):
            total.addmm_(self._B[first : first + rows.shape[0]], self._A)  # (n, R)(R, in)
        return self._add_others(total, rows, first)

    def _add_others(self, total: torch.Tensor, rows: torch.Tensor, first: int) -> torch.Tensor:
        """Add all that is not a plain delta."""
        for dora in self._dora:
            total += dora.term.strength * (dora.target(rows, first) - rows)
        for dense in self._dense:
            _add_dense(total, dense, rows, first)
        return total


class _Dora:
    """One term of DoRA: W′ = m ⊙ (W + ΔW)/‖W + ΔW‖."""

    def __init__(self, term: Term, shape: tuple[int, int]) -> None:
        self.term = term
        self._A, self._B = _stacked([term._replace(strength=1.0)], shape)
        self.squares = self._A.new_zeros(shape[1])

    def to(self, device: torch.device) -> _Dora:
        """The same on `device`."""
        assert self.term.magnitude is not None
        other = copy.copy(self)
        other.term = self.term._replace(magnitude=self.term.magnitude.to(device))
        other._A, other._B, other.squares = self._A.to(device), self._B.to(device), self.squares.to(device)
        return other

    def moved(self, rows: torch.Tensor, first: int) -> torch.Tensor:
        """W + ΔW of these rows, (n, in) float64."""
        return rows.to(torch.float64) + self._B[first : first + rows.shape[0]] @ self._A

    def target(self, rows: torch.Tensor, first: int) -> torch.Tensor:
        """W′ of these rows, (n, in) float64; a row or column of zeros stays zero, its direction being undefined."""
        moved = self.moved(rows, first)
        return moved * self.gain(moved, first)

    def gain(self, moved: torch.Tensor, first: int) -> torch.Tensor:
        """m/‖W + ΔW‖, (n, 1) of the rows W + ΔW from `first` on, or (1, in) of all that was looked at."""
        assert self.term.magnitude is not None
        magnitude = self.term.magnitude.to(torch.float64)
        if self.term.is_by_column:
            norm, wanted = self.squares.sqrt()[None, :], magnitude[None, :]
        else:
            norm = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
            wanted = magnitude[first : first + moved.shape[0], None]
        return torch.where(norm == 0, 0.0, wanted / norm)


def _add_dense(total: torch.Tensor, dense: Dense, rows: torch.Tensor, first: int) -> None:
    """Add one dense part to `total`, (n, in) float64, of the rows from `first` on."""
    here, values = dense.within(first, first + rows.shape[0])
    step = values.to(torch.float64)
    if dense.is_target:
        step = step - rows[here].to(torch.float64)
    total[here] += dense.strength * step


def apply_update(
    weight: torch.Tensor,
    update: Update,
    *,
    rounding: Rounding = Rounding.NEAREST,
    seed: int = 0,
    kept: torch.Tensor | None = None,
    is_measured: bool = True,
) -> Fidelity:
    """Change `weight` in place: W ← round(W + Σ wᵢ(W′ᵢ − W)).

    Parameters
    ----------
    weight : (out, in), float16, bfloat16, float32 or float64, on the device of the factors
    seed : of stochastic rounding
    kept : W, where `weight` holds something else, which is then replaced; of the same shape and type
    is_measured : whether what became of the update is wanted; it takes half as long again

    Notes
    -----
    O(out·in·R) time in float64; memory for one block of each thread. The same bits for any number of threads.

    Examples
    --------
    >>> weight = torch.zeros(3, 2)
    >>> term = Term(torch.ones(1, 2), torch.ones(3, 1), 0.5)
    >>> apply_update(weight, Update("q", (3, 2), [term])).effective_strength
    1.0
    """
    source = weight if kept is None else kept
    device = weight.device.type
    space = Workspace()

    if update.needs_columns:
        for _, first, end in update.blocks():
            update.look(source[first:end], first)

    def one(place: tuple[int, int, int]) -> Fidelity:
        block, first, end = place
        drawn = block_generator(seed, update.name, block, device=device) if rounding is Rounding.STOCHASTIC else None
        rows = source[first:end]
        moved = update.moved(rows, first, space=space)
        part = weight[first:end]
        return stored_rows(rows, moved, weight.dtype, generator=drawn, space=space, out=part, is_measured=is_measured)[
            1
        ]

    total = Fidelity()
    for figures in in_lanes(one, list(update.blocks()), worker_count() if device == "cpu" else 1):
        total.add(figures)
    return total


def _stacked(terms: Sequence[Term], shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of Σ wᵢ·sᵢ·BᵢAᵢ: A (R, in) and B (out, R), float64, the factors wᵢ·sᵢ in B."""
    if not terms:
        return torch.zeros((0, shape[1]), dtype=torch.float64), torch.zeros((shape[0], 0), dtype=torch.float64)
    A = torch.cat([term.lora_A.to(torch.float64) for term in terms])
    B = torch.cat([term.lora_B.to(torch.float64) * (term.scaling * term.strength) for term in terms], dim=1)
    return A.contiguous(), B.contiguous()
