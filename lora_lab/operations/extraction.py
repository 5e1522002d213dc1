"""The best approximation of W_ft − W₀ of low rank, tensor by tensor, and what goes along with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.domain.dtypes import DType
from lora_lab.domain.progress import Unwatched, stop_if_cancelled
from lora_lab.domain.tensors import TensorRef
from lora_lab.errors import CompatibilityError, LoraLabError, quoted
from lora_lab.linalg.approximation import low_rank_approximation, square_of_difference
from lora_lab.linalg.blocked import RowBlocks
from lora_lab.linalg.comparing import equal_numbers
from lora_lab.operations.execution import torch_type
from lora_lab.operations.extracting import divide

if TYPE_CHECKING:
    from lora_lab.analyses.checkpoint_pairs import Matrix
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.extension.contracts import Reader
    from lora_lab.linalg.approximation import Approximation
    from lora_lab.operations.extracting import Division, Piece

_BLOCK_ELEMENTS: Final = 1 << 20
_PREFIX: Final = "base_model.model."
# More parameters than this share of the matrix are no saving; --energy stops here.
_MOST_SHARE: Final = 1.0


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How to extract.

    Parameters
    ----------
    rank : of every module, or the most that `energy` may take
    energy : share in (0, 1] of ‖W_ft − W₀‖² that every module keeps; without `rank` and `energy` the rank is 16
    saves_others : take along whole what no factors stand for: norms, biases, a head that the base lacks
    dtype : of the factors
    seed : of the random start
    modules : globs of what is factored; none means all, and then only `saves_others` counts
    """

    rank: int | None = None
    energy: float | None = None
    saves_others: bool = False
    dtype: DType = DType.F32
    seed: int = 0
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise LoraLabError(f"The rank is {self.rank}, expected at least 1.")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise LoraLabError(f"The energy is {self.energy:g}, expected a share above 0 and up to 1.")


class Extracted(NamedTuple):
    """The factors of one module as they are written, and what they leave out.

    lora_A : (r, in), lora_B : (out, r), of the type of the output
    update_norm : ‖W_ft − W₀‖_F
    error : ‖(W_ft − W₀) − ΔW‖_F of these factors, rounding included
    bound : the error before rounding is at most 1 + bound times the least that this rank allows
    """

    piece: Piece
    lora_A: torch.Tensor
    lora_B: torch.Tensor
    update_norm: float
    error: float
    bound: float

    @property
    def rank(self) -> int:
        """0 where the two tensors are equal."""
        return int(self.lora_A.shape[0])


@dataclass(slots=True)
class Extraction:
    """Everything that is written, in memory: factors and whole modules, not the differences."""

    division: Division
    modules: list[Extracted] = field(default_factory=list)
    saved: dict[str, torch.Tensor] = field(default_factory=dict)  # by tensor
    saved_modules: list[str] = field(default_factory=list)
    has_biases: bool = False
    unchanged: list[str] = field(default_factory=list)
    not_saved: list[str] = field(default_factory=list)
    capped: list[str] = field(default_factory=list)  # where the energy asked for more than a matrix is worth
    bytes_read: int = 0


def extracted(
    base: Base, finetuned: Base, *, reader: Reader, options: ExtractOptions, observer: Observer | None = None
) -> Extraction:
    """Approximate every change, and gather what goes along.

    Raises
    ------
    CompatibilityError
        nothing fits, or nothing changed.
    NumericalError
        a tensor holds NaN or infinity.
    CancelledError
        the observer no longer wants it.

    Notes
    -----
    A difference is formed in blocks of rows, anew in each of some 6 passes over the two tensors. O(rows·columns·rank)
    time for each; memory for the factors and some blocks.
    """
    observer = observer or Unwatched()
    division = divide(base, finetuned, options.modules)
    result = Extraction(division)
    total = sum(_bytes(piece) for piece in division.pieces)
    done = 0
    for piece in division.pieces:
        stop_if_cancelled(observer)
        found = _extract(piece, reader, options, result, observer)
        result.bytes_read += _bytes(piece)
        if found.rank:
            result.modules.append(found)
        else:
            result.unchanged.append(piece.module)
        done += _bytes(piece)
        observer.advance(done, total, piece.module)
    result.modules = _at_equal_ranks(result.modules)
    _gather(result, reader, options, finetuned)
    if not result.modules:
        raise CompatibilityError(
            f"{quoted(base.name)} and {quoted(finetuned.name)} hold the same matrices, expected a fine-tune that "
            "changed some.",
            hint="lora-lab intrinsic BASE FINETUNED shows what was changed.",
        )
    return result


def _extract(
    piece: Piece, reader: Reader, options: ExtractOptions, result: Extraction, observer: Observer
) -> Extracted:
    matrix = piece.matrix
    rows, columns = matrix.shape
    worth = max(1, int(_MOST_SHARE * rows * columns / (rows + columns)))
    most = options.rank or (16 if options.energy is None else worth)
    with reader.rows_of(_own(matrix.before, matrix)) as before, reader.rows_of(_own(matrix.after, matrix)) as after:

        def difference(first: int, end: int) -> torch.Tensor:
            stop_if_cancelled(observer)
            new, old = after(first, end).to(torch.float64), before(first, end)
            return new.sub_(old).reshape(end - first, columns)

        change = RowBlocks((rows, columns), difference)
        found = low_rank_approximation(change, rank=most, energy=options.energy, seed=options.seed, name=piece.module)
        if options.energy is not None and len(found.S) == most and _kept(found) < options.energy * (1 - 1e-9):
            result.capped.append(piece.module)
        dtype = torch_type(options.dtype)
        root = found.S.sqrt()
        left, right = (found.U * root).to(dtype), (root[:, None] * found.Vh).to(dtype)
        square = square_of_difference(change, left.to(torch.float64), right.to(torch.float64)) if len(root) else 0.0
    lora_A, lora_B = (left.T, right.T) if piece.is_transposed else (right, left)
    return Extracted(piece, lora_A.contiguous(), lora_B.contiguous(), found.norm, math.sqrt(square), found.excess)


def _at_equal_ranks(modules: list[Extracted]) -> list[Extracted]:
    """The same, the experts of each parameter brought to the largest rank among them by zeros, as they are stored."""
    largest: dict[str, int] = {}
    for module in modules:
        largest[module.piece.parameter] = max(module.rank, largest.get(module.piece.parameter, 0))
    widened = []
    for module in modules:
        missing = largest[module.piece.parameter] - module.rank
        lora_A = torch.nn.functional.pad(module.lora_A, (0, 0, 0, missing))
        widened.append(module._replace(lora_A=lora_A, lora_B=torch.nn.functional.pad(module.lora_B, (0, missing))))
    return widened


def _own(ref: TensorRef, matrix: Matrix) -> TensorRef:
    """The matrix of one expert inside of the tensor of all; the tensor itself otherwise."""
    if matrix.expert is None:
        return ref
    size = ref.size_bytes // ref.shape[0]
    begin = ref.begin_bytes + matrix.expert * size
    return replace(ref, shape=ref.shape[1:], begin_bytes=begin, end_bytes=begin + size)


def _bytes(piece: Piece) -> int:
    return sum(_own(ref, piece.matrix).size_bytes for ref in (piece.matrix.before, piece.matrix.after))


def _kept(found: Approximation) -> float:
    return 1.0 - (found.relative_error or 0.0) ** 2


def _gather(result: Extraction, reader: Reader, options: ExtractOptions, finetuned: Base) -> None:
    """Take along what no factors stand for, where it is wanted and changed."""
    for name, (why, other) in result.division.stuck.items():
        if _differs(reader, other.before, other.after):
            result.division.left[name] = why
    changed_biases = [bias for bias in result.division.biases if _differs(reader, bias.before, bias.after)]
    if options.saves_others:
        factored = {module.piece.module for module in result.modules}
        for bias in changed_biases:
            module = bias.after.name.removesuffix(".bias")
            if module in factored:
                result.saved[f"{_PREFIX}{module}.base_layer.bias"] = reader.tensor(bias.after)
                result.has_biases = True
            else:
                _save_module(result, module, reader, finetuned)
    else:
        result.not_saved += [bias.after.name for bias in changed_biases]
    for module, members in result.division.whole.items():
        is_new = any(isinstance(one, TensorRef) for one in members)
        is_changed = is_new or any(
            not isinstance(one, TensorRef) and _differs(reader, one.before, one.after) for one in members
        )
        if not is_changed:
            result.unchanged.append(module)
        elif options.saves_others:
            _save_module(result, module, reader, finetuned)
        else:
            result.not_saved.append(module)


def _save_module(result: Extraction, module: str, reader: Reader, finetuned: Base) -> None:
    """All tensors of a module, as PEFT replaces it whole."""
    if module in result.saved_modules:
        return
    result.saved_modules.append(module)
    for leaf in ("weight", "bias"):
        ref = finetuned.tensors.get(f"{module}.{leaf}")
        if ref is not None:
            result.saved[f"{_PREFIX}{module}.{leaf}"] = reader.tensor(ref)


def _differs(reader: Reader, before: TensorRef, after: TensorRef) -> bool:
    """Whether two tensors of one shape hold other numbers, in blocks of rows."""
    if not before.shape:
        return not equal_numbers(reader.tensor(before), reader.tensor(after))
    rows, step = before.shape[0], max(1, _BLOCK_ELEMENTS * before.shape[0] // max(1, before.elements))
    with reader.rows_of(before) as old, reader.rows_of(after) as new:
        spans = ((first, min(rows, first + step)) for first in range(0, rows, step))
        return any(not equal_numbers(old(*span), new(*span)) for span in spans)
