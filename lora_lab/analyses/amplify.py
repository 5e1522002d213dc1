"""How strongly an adapter amplifies directions that the base's weight hardly uses."""

from __future__ import annotations

import math
import statistics
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.placing import Placing, is_turned, placed, store_key
from lora_lab.analyses.summaries import counted, fault_finding
from lora_lab.analyses.watching import watched
from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import NumericalError, quoted
from lora_lab.extension.contracts import Need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from lora_lab.domain.adapter import Delta
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import AnalysisContext
    from lora_lab.linalg.blocked import RowBlocks

_REFERENCE: Final = "arXiv 2106.09685, section 7.3 and table 7"
# Elements up to which a weight is kept in memory, as float32, while its own directions are looked for.
_HELD_ELEMENTS: Final = 24 << 20
_HELD_BYTES: Final = 160 << 20  # that all workers may hold together before they wait for each other
_MOST_COLUMNS: Final = 256  # of random directions in one pass
_SHOWN: Final = 3

_COLUMNS: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("tensor", "Tensor of the base", ColumnKind.TEXT, is_wide=True),
    Column("shape", "Shape", ColumnKind.SHAPE, formula="of W as the base stores it"),
    Column("rank", "r", ColumnKind.INTEGER, formula="directions compared"),
    Column("amplification", "Amplification", formula="‖ΔW‖_F / ‖UᵀWV‖_F, U and V of ΔW", reference=_REFERENCE),
    Column("delta_norm", "‖ΔW‖_F", formula="√Σσ²; of DoRA ‖W′−W‖_F"),
    Column("base_norm", "‖W‖_F"),
    Column(
        "projected",
        "‖UᵀWV‖",
        ColumnKind.MAPPING,
        formula="‖UᵀWV‖_F with U, V the first r singular directions of ΔW, of W, or random",
        reference=_REFERENCE,
    ),
    Column("amplification_base", "of W's own", formula="‖ΔW‖_F / ‖UᵀWV‖_F, U and V of W", is_wide=True),
    Column("amplification_random", "of random", formula="‖ΔW‖_F / ‖UᵀWV‖_F, U and V random", is_wide=True),
)
_TOTALS: Final = (
    Column("modules", "Modules", ColumnKind.INTEGER),
    Column("median_amplification", "Median amplification", formula="median of ‖ΔW‖_F / ‖UᵀWV‖_F over the modules"),
    Column("median_random", "Median, random", formula="median of ‖ΔW‖_F / ‖UᵀWV‖_F with random U and V"),
    Column("largest_module", "Largest in", ColumnKind.TEXT),
    Column("largest_amplification", "Largest amplification"),
)


class Amplify:
    """‖ΔW‖_F against what the base's weight has in ΔW's directions, in its own, and in random ones.

    Notes
    -----
    W is read once, in blocks, for ΔW's own directions and for the norm. In W's own first r directions UᵀWV is diag(σ):
    its norm √(σ₁² + … + σ_r²) takes several products with W, is right to a relative 1e-6, and is kept in the store.
    Random directions have the root mean square ‖W‖_F·r/√(m·n), or are drawn.
    """

    id = "amplify"
    title = "Amplification"
    summary = "How strongly ΔW amplifies directions of the base, beside W's own and random directions."
    reference = _REFERENCE
    parameters = (
        Parameter("rank", "Directions; the module's numerical rank when not given", ParameterKind.INTEGER, None, 1),
        Parameter("draws", "Random draws; 0 takes the closed form", ParameterKind.INTEGER, 0, 0, 1000),
        Parameter("base_directions", "W's own leading directions too, the slow part", ParameterKind.BOOLEAN, True),
    )
    subjects = (1, 1)
    takes_models = False
    base = Need.REQUIRED

    def reads(self, context: AnalysisContext) -> list[TensorRef]:
        """The weight under each module, once."""
        return placed(context).parts

    def run(self, context: AnalysisContext) -> Report:
        """Compare module by module.

        Raises
        ------
        AdapterError
            ΔW cannot be computed, or no module matches.
        CompatibilityError
            the base has no weights, or none of the modules.
        """
        placing = placed(context)
        work = _Work(context, placing)
        rows = list(watched(work.rows(), len(placing.deltas), context.observer))
        return Report(
            command=self.id,
            title=f"Amplification of {placing.adapter.name} over {placing.base.name}",
            tables=(Table("modules", "Modules", _COLUMNS, tuple(rows)),),
            scalars=(
                placing.scalars("Amplification"),
                Scalars("totals", "Totals", _TOTALS, _totals(rows)),
            ),
            findings=placing.findings(work.findings()),
        )


class _Work:
    """Reads, compares, and remembers what has to be said."""

    def __init__(self, context: AnalysisContext, placing: Placing) -> None:
        self._context = context
        self._placing = placing
        self._rank: int | None = context.parameters["rank"]
        self._draws: int = context.parameters["draws"]
        self._has_base: bool = context.parameters["base_directions"]
        self._notes: list[Finding] = []
        self._zero: list[str] = []
        self._fewer: list[str] = []

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row for each module, in order; several are computed side by side."""
        from lora_lab.linalg.side_by_side import side_by_side

        deltas = self._placing.deltas
        for delta, row in zip(deltas, side_by_side(self._tasks()), strict=True):
            if isinstance(row, NumericalError):
                self._notes.append(fault_finding(delta.module, row))
                row = self._empty(delta) | {"rank": None}
            yield row

    def _tasks(self) -> Iterator[tuple[int, Callable[[], dict[str, Any] | NumericalError]]]:
        for delta in self._placing.deltas:
            stop_if_cancelled(self._context.observer)
            yield self._held_bytes(delta), self._task(delta)

    def _held_bytes(self, delta: Delta) -> int:
        """What a task counts for among those that wait: nothing where all workers may hold their weights at once."""
        from lora_lab.linalg.threads import worker_count

        part = self._placing.part(delta)
        size = 4 * part.elements
        if not self._has_base or part.elements > _HELD_ELEMENTS or worker_count() * size <= _HELD_BYTES:
            return 0
        return size if self._known(part, min(self._rank or delta.rank, delta.rank)) is None else 0

    def _task(self, delta: Delta) -> Callable[[], dict[str, Any] | NumericalError]:
        def task() -> dict[str, Any] | NumericalError:
            try:
                return self._row(delta)
            except NumericalError as error:
                return error

        return task

    def _empty(self, delta: Delta) -> dict[str, Any]:
        row: dict[str, Any] = {column.id: None for column in _COLUMNS}
        part = self._placing.part(delta)
        return row | {"module": delta.module, "tensor": part.name, "shape": list(part.shape), "rank": 0}

    def _row(self, delta: Delta) -> dict[str, Any]:
        from lora_lab.analyses.effective import change_of
        from lora_lab.linalg.blocked import RowBlocks
        from lora_lab.linalg.projections import random_norm

        part = self._placing.part(delta)
        reader = self._context.reader
        factors = reader.factors(delta)
        shape = (part.shape[0], math.prod(part.shape[1:]))
        with ExitStack() as stack:
            stored = stack.enter_context(reader.rows_of(part))
            weight = RowBlocks(shape, _wide(stored, part), workers=1)
            change = change_of(
                delta,
                factors,
                weight,
                is_turned=is_turned(factors, shape),
                rank=self._rank,
                magnitude=None if delta.magnitude is None else reader.tensor(delta.magnitude).reshape(-1),
                is_moved=self._placing.is_moved,
            )
            rank = change.left.shape[1]
            weight = weight.on(self._device(part))
            known = self._known(part, rank)
            if known is None and self._has_base and rank and part.elements <= _HELD_ELEMENTS:
                weight = weight.held()
            norm, own, drawn = self._projected(delta, weight, change.left, change.right)
            if not math.isfinite(norm):
                raise NumericalError(f"The weight {quoted(part.name)} holds NaN or infinity, expected finite numbers.")
            leading = self._leading(part, weight, rank, known) if self._has_base and rank else None
        row = self._empty(delta) | {"rank": rank, "delta_norm": change.norm, "base_norm": norm}
        if not rank:
            self._zero.append(delta.module)
            return row
        if self._rank is not None and rank < self._rank:
            self._fewer.append(delta.module)
        chance = drawn if self._draws else random_norm(norm, rank, shape)
        return row | {
            "projected": {"delta": own, "base": leading, "random": chance},
            "amplification": _ratio(change.norm, own),
            "amplification_base": None if leading is None else _ratio(change.norm, leading),
            "amplification_random": _ratio(change.norm, chance),
        }

    def _device(self, part: TensorRef) -> str:
        """Where W is multiplied: a float64 weight on the processor where the device has no such numbers."""
        from lora_lab.linalg.device import has_float64

        device = self._context.device
        return device if part.dtype.bits < 64 or has_float64(device) else "cpu"

    def _projected(
        self, delta: Delta, weight: RowBlocks, left: torch.Tensor, right: torch.Tensor
    ) -> tuple[float, float, float]:
        """‖W‖_F, ‖UᵀWV‖_F in the given directions, and the root mean square of it in random ones."""
        import torch

        from lora_lab.linalg.projections import project, random_directions

        rank = left.shape[1]
        lefts, rights = [left], [right]
        squares = []
        norm = own = 0.0
        for draw in range(self._draws + 1):
            if draw:
                name, seed = f"{delta.module}/{draw}", self._context.seed
                lefts.append(random_directions(weight.shape[0], rank, seed=seed, name=f"{name}/left"))
                rights.append(random_directions(weight.shape[1], rank, seed=seed, name=f"{name}/right"))
            if draw < self._draws and (len(lefts) + 1) * rank <= _MOST_COLUMNS:
                continue
            norm, core = project(weight, torch.cat(lefts, dim=1), torch.cat(rights, dim=1))
            blocks = [core[at : at + rank, at : at + rank] for at in range(0, core.shape[0], max(rank, 1))]
            sizes = [float(torch.linalg.vector_norm(block)) for block in blocks]
            if draw == len(lefts) - 1:  # the first pass begins with the change's own directions
                own, sizes = (sizes[0], sizes[1:]) if sizes else (0.0, [])
            squares += [size**2 for size in sizes]
            lefts, rights = [], []
        return norm, own, math.sqrt(math.fsum(squares) / len(squares)) if squares else 0.0

    def _key(self, part: TensorRef, rank: int) -> str:
        from lora_lab.linalg.leading import VERSION

        return store_key(part, "leading_norm", VERSION, rank)

    def _known(self, part: TensorRef, rank: int) -> float | None:
        """‖UᵀWV‖_F in W's own first directions, where the store has it."""
        store = self._context.store
        found = store.get(self._key(part, rank)) if store and self._has_base and rank else None
        return float(found["norm"]) if found and "norm" in found else None

    def _leading(self, part: TensorRef, weight: RowBlocks, rank: int, known: float | None) -> float:
        """√Σσᵢ² of W's first `rank` singular values, to a relative 1e-6; kept in the store."""
        import torch

        from lora_lab.linalg.leading import leading_norm

        if known is not None:
            return known
        found = leading_norm(weight, rank).norm
        if self._context.store:
            self._context.store.put(self._key(part, rank), {"norm": torch.tensor(found, dtype=torch.float64)})
        return found

    def findings(self) -> Iterator[Finding]:
        """Yield everything that was met on the way."""
        yield from self._notes
        if self._zero:
            yield Finding("zero_delta", f"ΔW is zero in {_some(self._zero)}: it has no directions to amplify.")
        if self._fewer:
            yield Finding(
                "fewer_directions",
                f"There are fewer directions than {self._rank} in {_some(self._fewer)}: all that are not numerically "
                "zero are compared.",
            )


def _wide(stored: Callable[[int, int], torch.Tensor], part: TensorRef) -> Callable[[int, int], torch.Tensor]:
    """Rows as float32, or as float64 where they are stored so."""

    def rows(first: int, end: int) -> torch.Tensor:
        found = stored(first, end)
        return found if part.dtype.bits == 64 else found.float()

    return rows


def _ratio(above: float, below: float) -> float | None:
    return above / below if below > 0 else None


def _some(names: list[str]) -> str:
    shown = ", ".join(quoted(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{counted(names, 'module', 'modules')}: {shown}{more}"


def _totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    known = [row for row in rows if row["amplification"] is not None]
    largest = max(known, key=lambda row: row["amplification"], default=None)
    return {
        "modules": len(known),
        "median_amplification": statistics.median(row["amplification"] for row in known) if known else None,
        "median_random": statistics.median(row["amplification_random"] for row in known) if known else None,
        "largest_module": largest["module"] if largest else None,
        "largest_amplification": largest["amplification"] if largest else None,
    }
