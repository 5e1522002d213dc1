"""The spectrum of a full change W₁ − W₀ of one matrix, and the part of it that rounding alone would leave.

Both matrices are read as stored, their difference is formed in float64 by blocks of rows: of two numbers of 24 bits or
fewer it is exact unless they lie 2²⁹ apart. Of a tall matrix (a wide one is turned) the blocks are reduced to one
triangular factor R with RᵀR = ΔᵀΔ, so that the difference is never held whole; its singular values are those of Δ.
The Gram matrix would be some 1.5 times faster and is not taken: it squares the condition number.

A checkpoint in bfloat16 holds W₁ rounded to 8 bits. Rounding moves an element w by up to half the spacing ulp(w) of
the type around it, uniformly to good approximation, so by ulp(w)/√12 in the root mean square. The expected norm of a
matrix of independent errors with variances b² is

    ‖E‖_F ≈ √Σb²,        ‖E‖₂ ≲ max_i √Σ_j b_ij² + max_j √Σ_i b_ij².

Sources: Golub and Van Loan, Matrix Computations, sections 5.2 and 8.6; Widrow and Kollár, Quantization Noise (2008),
chapter 1; Bandeira and van Handel, Annals of Probability 44 (2016), theorem 1.1.
"""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.errors import CompatibilityError, NumericalError, quoted
from lora_lab.linalg.spectra import triangular_factor
from lora_lab.linalg.threads import one_thread, worker_count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

# Elements of a float64 block of the difference, unless as many rows as there are columns are more.
_BLOCK_ELEMENTS: Final = 1 << 20
# Bytes that the matrices being decomposed side by side may take together; one may take more.
_WINDOW_BYTES: Final = 1 << 30
_UNIFORM_VARIANCE: Final = 1.0 / 12.0


class Change(NamedTuple):
    """One matrix before and after, as stored, and what to call it.

    before : (rows, columns), float of any width
    after : (rows, columns), float of any width
    spacing : of the numbers just above 1 in the coarser of the two types
    """

    name: str
    before: torch.Tensor
    after: torch.Tensor
    spacing: float


class ChangeSpectrum(NamedTuple):
    """What a change is made of.

    singular_values : (min(rows, columns),) float64, descending; exact zeros for equal matrices
    base_norm : ‖W₀‖_F
    rounding_norm : ‖E‖_F expected of rounding W₁ once
    rounding_edge : the ‖E‖₂ expected, below which a singular value may be rounding
    """

    singular_values: torch.Tensor
    base_norm: float
    rounding_norm: float
    rounding_edge: float


def change_spectrum(change: Change) -> ChangeSpectrum:
    """Compute every singular value of after − before.

    Returns
    -------
    the spectrum, the norm of `before`, and what rounding `after` would leave

    Raises
    ------
    CompatibilityError
        the two are not matrices of one shape.
    NumericalError
        one of them holds NaN or infinity.

    Notes
    -----
    Backward stable: |σ̂ − σ| ≤ c·ε·σ₁ with ε = 2.2e-16 and c a small multiple of the smaller side's square root; below
    1e-12·σ₁ at any size that fits. The bits depend neither on the number of threads nor on the machine's memory.
    O(rows·columns·min(rows, columns)) time; memory beyond the two as stored: about three float64 squares of the
    smaller side.

    Examples
    --------
    >>> before, after = torch.eye(3), torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    >>> change_spectrum(Change("w", before, after, 2**-23)).singular_values
    tensor([2., 1., 0.], dtype=torch.float64)
    """
    before, after = change.before, change.after
    if before.ndim != 2 or before.shape != after.shape:
        raise CompatibilityError(
            f"The matrices of {quoted(change.name)} are {tuple(before.shape)} and {tuple(after.shape)}, expected one "
            "shape of two sides."
        )
    if before.shape[0] < before.shape[1]:
        before, after = before.T, after.T
    with one_thread():
        return _decomposed(change, before, after)


def stream_change_spectra(changes: Iterable[Change]) -> Iterator[tuple[Change, ChangeSpectrum | NumericalError]]:
    """Compute many, several side by side, yielding each with its change, in the order given.

    A matrix that is not finite gives the error instead of a spectrum: it does not end the others.

    Parameters
    ----------
    changes : read lazily in the calling thread, as many at a time as there are processors and 1 GiB has room for
    """
    workers = worker_count()
    waiting: deque[tuple[Change, Future[ChangeSpectrum]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="change")
    try:
        for change in changes:
            needed = _bytes(change)
            while waiting and (len(waiting) >= workers or held + needed > _WINDOW_BYTES):
                held -= _bytes(waiting[0][0])
                yield _result(*waiting.popleft())
            waiting.append((change, pool.submit(change_spectrum, change)))
            held += needed
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def change_norms(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float]:
    """‖before‖ and ‖after − before‖ of two tensors of one shape, in float64.

    Examples
    --------
    >>> change_norms(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
    (5.0, 1.0)
    """
    with one_thread():
        wide = before.to(torch.float64)
        return float(torch.linalg.vector_norm(wide)), float(torch.linalg.vector_norm(after.to(torch.float64) - wide))


def _decomposed(change: Change, before: torch.Tensor, after: torch.Tensor) -> ChangeSpectrum:
    """The same for a matrix that is at least as tall as wide."""
    rows, columns = before.shape
    step = max(1, columns, _BLOCK_ELEMENTS // max(columns, 1))
    factor = torch.empty((0, columns), dtype=torch.float64)
    squares, tallest = [], 0.0
    of_columns = torch.zeros(columns, dtype=torch.float64)
    for first in range(0, rows, step):
        old = before[first : first + step].to(torch.float64)
        new = after[first : first + step].to(torch.float64)
        squares.append(float(old.square().sum()))
        errors = _rounding_variances(new, change.spacing)
        tallest = max(tallest, float(errors.sum(dim=1).max()) if columns else 0.0)
        of_columns += errors.sum(dim=0)
        factor = triangular_factor(torch.cat([factor, new - old]))
    if not (torch.isfinite(factor).all() and math.isfinite(math.fsum(squares))):
        raise NumericalError(
            f"{quoted(change.name)} holds NaN or infinity in one of the two checkpoints, expected finite weights.",
            hint="The training diverged, or the file is damaged.",
        )
    singular_values = torch.zeros(columns, dtype=torch.float64)
    if factor.any():
        singular_values = torch.linalg.svdvals(factor)
    return ChangeSpectrum(
        singular_values,
        math.sqrt(math.fsum(squares)),
        math.sqrt(float(of_columns.sum())),
        math.sqrt(tallest) + math.sqrt(float(of_columns.max()) if columns else 0.0),
    )


def _rounding_variances(values: torch.Tensor, spacing: float) -> torch.Tensor:
    """ulp²/12 of each element, ulp = spacing·2^e for 2^e ≤ |w| < 2^(e+1); a zero is taken to be exact."""
    exponents = torch.frexp(values).exponent.to(torch.float64) - 1.0
    return torch.where(values == 0, 0.0, torch.exp2(2.0 * exponents) * (spacing * spacing * _UNIFORM_VARIANCE))


def _result(change: Change, future: Future[ChangeSpectrum]) -> tuple[Change, ChangeSpectrum | NumericalError]:
    try:
        return change, future.result()
    except NumericalError as error:
        return change, error


def _bytes(change: Change) -> int:
    """What one decomposition takes: the two as stored, and float64 squares of the smaller side."""
    return change.before.nbytes + change.after.nbytes + 8 * 4 * min(change.before.shape) ** 2
