"""What a full fine-tune changed: the spectrum of W_ft − W₀, and how much of it a low rank would hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.checkpoint_pairs import pair_checkpoints
from lora_lab.analyses.intrinsic_columns import MODULES, RANKS, TOTALS, WHOLE
from lora_lab.analyses.summaries import counted, summarised
from lora_lab.analyses.watching import watched
from lora_lab.domain.base import Base
from lora_lab.domain.modules import select_modules
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.domain.quantised import require_plain
from lora_lab.domain.report import Finding, Report, Scalars, Table
from lora_lab.errors import AdapterError, CompatibilityError, LoraLabError, quoted
from lora_lab.extension.contracts import Need
from lora_lab.linalg.measures import effective_rank, energy_ranks, relative_errors, spacing, stable_rank

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from lora_lab.analyses.checkpoint_pairs import Matrix, Other, Pairs
    from lora_lab.domain.parameters import Parameter
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import AnalysisContext
    from lora_lab.linalg.dense import Change, ChangeSpectrum

# An update is called near the rounding of its type when its norm is below so many times what rounding alone leaves.
_NEAR: Final = 2.0

# Number, norm and norm of the change of what is no matrix; None where modules were chosen.
_Others = tuple[int | None, float | None, float | None]


class Intrinsic:
    """Singular values of the whole update of each matrix, formed and decomposed in float64, one matrix at a time."""

    id = "intrinsic"
    title = "Intrinsic rank"
    summary = "Spectrum of a full fine-tune's update W_ft − W₀: energy ranks, and the error of every lower rank."
    reference = "arXiv 2106.09685, section 4.1; arXiv 2012.13255"
    parameters: tuple[Parameter, ...] = ()
    subjects = (2, 2)
    takes_models = True
    base = Need.NO
    is_on_processor = True

    def reads(self, context: AnalysisContext) -> list[TensorRef]:
        """Both tensors of every matrix, a tensor of experts once, then those of the vectors."""
        base, finetuned = _checkpoints(context)
        pairs = pair_checkpoints(base, finetuned)
        wanted: list[TensorRef] = []
        for matrix in _selected(pairs, base, finetuned, context.modules):
            if wanted[-2:] != [matrix.before, matrix.after]:
                wanted += (matrix.before, matrix.after)
        return wanted + [ref for other in _vectors(pairs, context) for ref in (other.before, other.after)]

    def run(self, context: AnalysisContext) -> Report:
        """Compare two full checkpoints of one model.

        Raises
        ------
        AdapterError
            an input is an adapter.
        CompatibilityError
            an input is a configuration alone or quantised, or the two have no matrix in common.
        LoraLabError
            no matrix matches the globs.

        Notes
        -----
        O(rows·columns·min(rows, columns)) time for each matrix. Memory: both tensors as stored, and about four float64
        squares of the smaller side, for as many matrices side by side as 1 GiB has room for, at least one.
        """
        base, finetuned = _checkpoints(context)
        pairs = pair_checkpoints(base, finetuned)
        matrices = _selected(pairs, base, finetuned, context.modules)
        failures: dict[str, str] = {}
        rows = list(watched(_rows(matrices, context, failures), len(matrices), context.observer))
        others = _others(_vectors(pairs, context), context) if not context.modules else (None, None, None)
        return Report(
            command=self.id,
            title=f"{finetuned.name} − {base.name}",
            tables=(
                Table("modules", "Matrices", MODULES, tuple(rows)),
                Table("ranks", "All matrices at one rank", RANKS, tuple(_ranks(rows)), key="rank"),
            ),
            scalars=(
                Scalars("", "Names", WHOLE, {column.id: getattr(pairs, column.id) for column in WHOLE}),
                Scalars("totals", "Totals", TOTALS, _totals(rows, others)),
            ),
            findings=tuple(_findings(pairs, rows, failures)),
        )


def _checkpoints(context: AnalysisContext) -> tuple[Base, Base]:
    base, finetuned = (_checkpoint(subject) for subject in context.subjects)
    return base, finetuned


def _checkpoint(subject: object) -> Base:
    if not isinstance(subject, Base):
        name = quoted(getattr(subject, "name", "the input"))
        raise AdapterError(
            f"{name} is an adapter, expected two full checkpoints.",
            hint="The update of an adapter is shown by: lora-lab spectrum SRC",
        )
    require_plain(subject, hint="Give the checkpoint that it was made from, or dequantise it first.")
    return subject


def _selected(pairs: Pairs, base: Base, finetuned: Base, globs: Sequence[str]) -> list[Matrix]:
    if not pairs.matrices:
        raise CompatibilityError(
            f"{quoted(base.name)} and {quoted(finetuned.name)} have no matrix in common: one has "
            f"{_first(base)}, the other {_first(finetuned)}.",
            hint="Give two checkpoints of one model.",
        )
    names = [matrix.module for matrix in pairs.matrices]
    chosen = set(select_modules(names, globs))
    if globs and not chosen:
        raise LoraLabError(
            f"No matrix matches {', '.join(quoted(glob) for glob in globs)}, expected a name such as "
            f"{quoted(names[0])}.",
            hint="lora-lab inspect lists the tensors.",
        )
    return [matrix for matrix in pairs.matrices if matrix.module in chosen]


def _first(base: Base) -> str:
    return quoted(next(iter(base.tensors)))


def _rows(matrices: Sequence[Matrix], context: AnalysisContext, failures: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield one row for each matrix, in order; `failures` takes the sentence of one that is not finite."""
    from lora_lab.linalg.dense import stream_change_spectra

    for matrix, (_, result) in zip(matrices, stream_change_spectra(_changes(matrices, context)), strict=True):
        if isinstance(result, LoraLabError):
            failures[matrix.module] = str(result)
            yield {**dict.fromkeys(column.id for column in MODULES), "module": matrix.module, "shape": [*matrix.shape]}
        else:
            yield _row(matrix, result)


def _changes(matrices: Sequence[Matrix], context: AnalysisContext) -> Iterator[Change]:
    """Read the matrices, a tensor of experts once for all that are asked of it."""
    from lora_lab.linalg.dense import Change

    held: tuple[torch.Tensor, torch.Tensor] | None = None
    last: Matrix | None = None
    for matrix in matrices:
        stop_if_cancelled(context.observer)
        if held is None or last is None or (last.before, last.after) != (matrix.before, matrix.after):
            held = None  # before the next is read: one tensor at a time
            held = (context.reader.tensor(matrix.before), context.reader.tensor(matrix.after))
            last = matrix
        rows, columns = matrix.shape
        before, after = (whole if matrix.expert is None else whole[matrix.expert] for whole in held)
        coarser = max(spacing(matrix.before.dtype), spacing(matrix.after.dtype))
        yield Change(matrix.module, before.reshape(-1, columns)[:rows], after.reshape(-1, columns)[:rows], coarser)


def _row(matrix: Matrix, found: ChangeSpectrum) -> dict[str, Any]:
    values = found.singular_values.tolist()
    update_norm = math.hypot(*values)
    errors = relative_errors(values)
    return {
        "module": matrix.module,
        "shape": list(matrix.shape),
        "base_norm": found.base_norm,
        "update_norm": update_norm,
        "relative_norm": update_norm / found.base_norm if found.base_norm else None,
        "singular_values": values,
        "stable_rank": stable_rank(values),
        "effective_rank": effective_rank(values),
        "energy_rank": energy_ranks(values),
        "reconstruction": errors
        and [{"rank": rank, "relative_error": errors[rank - 1]} for rank in powers(len(errors))],
        "reconstruction_error": errors,
        "rounding_norm": found.rounding_norm,
        "rounding_edge": found.rounding_edge,
    }


def powers(most: int) -> list[int]:
    """1, 2, 4, … below `most`, and `most` itself.

    Examples
    --------
    >>> powers(12)
    [1, 2, 4, 8, 12]
    """
    return [*(1 << place for place in range(max(most - 1, 0).bit_length())), most] if most else []


def _ranks(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what one rank for all matrices would leave, the squares of every matrix taken together."""
    changed = [row for row in rows if row["reconstruction_error"]]
    if not changed:
        return
    elements = sum(math.prod(row["shape"]) for row in changed)
    whole = math.hypot(*(row["update_norm"] for row in changed))
    for rank in powers(max(len(row["reconstruction_error"]) for row in changed)):
        left = [
            row["update_norm"] * row["reconstruction_error"][rank - 1]
            for row in changed
            if rank <= len(row["reconstruction_error"])
        ]
        parameters = sum(min(rank * sum(row["shape"]), math.prod(row["shape"])) for row in changed)
        yield {
            "rank": rank,
            "relative_error": math.hypot(*left) / whole,
            "parameters": parameters,
            "share": parameters / elements,
        }


def _vectors(pairs: Pairs, context: AnalysisContext) -> Sequence[Other]:
    """What is not a matrix; left out where only some modules are asked for."""
    return () if context.modules else pairs.others


def _others(vectors: Sequence[Other], context: AnalysisContext) -> _Others:
    """How many vectors and scalars there are, the norm of the base's, and that of their change."""
    from lora_lab.linalg.dense import change_norms

    norms = []
    for other in vectors:
        stop_if_cancelled(context.observer)
        norms.append(change_norms(context.reader.tensor(other.before), context.reader.tensor(other.after)))
    base, update = (math.hypot(*(pair[place] for pair in norms)) for place in (0, 1))
    return len(norms), _finite(base), _finite(update)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _totals(rows: Sequence[dict[str, Any]], others: _Others) -> dict[str, Any]:
    known = [row for row in rows if row["update_norm"] is not None]
    ranks = [row["effective_rank"] for row in known if row["effective_rank"] is not None]
    base, update, rounding = (
        math.hypot(*(row[name] for row in known)) for name in ("base_norm", "update_norm", "rounding_norm")
    )
    moved = [row for row in known if row["update_norm"] and row["base_norm"]]
    largest = max(moved, key=lambda row: row["relative_norm"], default=None)
    return {
        "modules": len(rows),
        "unchanged": sum(not row["update_norm"] for row in known),
        "parameters": sum(math.prod(row["shape"]) for row in rows),
        "base_norm": base,
        "update_norm": update,
        "relative_norm": update / base if base else None,
        "rounding_norm": rounding,
        "largest_module": largest["module"] if largest else None,
        "mean_effective_rank": math.fsum(ranks) / len(ranks) if ranks else None,
        "others": others[0],
        "others_base_norm": others[1],
        "others_update_norm": others[2],
    }


def _findings(pairs: Pairs, rows: Sequence[dict[str, Any]], failures: dict[str, str]) -> Iterator[Finding]:
    if pairs.clashes:
        yield Finding("shape_mismatch", f"Left out, as the shapes differ: {summarised(pairs.clashes)}.")
    if pairs.resized:
        yield Finding("vocabulary_resized", f"Compared on the rows that both have: {summarised(pairs.resized)}.")
    if pairs.unreadable:
        yield Finding("no_floats", f"Left out, as they hold no plain floats: {summarised(pairs.unreadable)}.")
    if failures:
        first = next(iter(failures.values()))
        yield Finding("not_finite", f"{first} {counted(failures, 'matrix', 'matrices')} without numbers.")
    equal = [row["module"] for row in rows if row["update_norm"] == 0]
    if equal:
        yield Finding(
            "zero_update",
            f"{counted(equal, 'matrix is', 'matrices are')} equal in both, so that ratios of the update are undefined: "
            f"{summarised(map(quoted, equal))}.",
        )
    near = [row["module"] for row in rows if row["update_norm"] and row["update_norm"] < _NEAR * row["rounding_norm"]]
    if near:
        yield Finding(
            "near_rounding",
            f"The update of {counted(near, 'matrix', 'matrices')} is below {_NEAR:g} times what rounding to the stored "
            f"type leaves alone, so that its small singular values are noise: {summarised(map(quoted, near))}.",
        )
