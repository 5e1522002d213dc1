"""Intruder dimensions: leading directions of W + ΔW that are none of W's."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lora_lab.analyses.pairs import listed, module_finding
from lora_lab.analyses.placing import Placing, is_turned, placed, store_key
from lora_lab.analyses.summaries import fault_finding
from lora_lab.analyses.watching import watched
from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import NumericalError, quoted
from lora_lab.extension.contracts import Need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lora_lab.domain.adapter import Delta
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import AnalysisContext, ArrayStore
    from lora_lab.linalg.decompositions import Merged
    from lora_lab.linalg.tridiagonal import TridiagonalProcesses
    from lora_lab.linalg.weight_basis import WeightBasis

_REFERENCE: Final = "arXiv 2410.21228, section 3"
# Bytes that modules worked on side by side may take together, and float64 squares that one decomposition takes.
_WINDOW_BYTES: Final = 2 << 30
_SQUARES: Final = 5

_COLUMNS: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("tensor", "Tensor of the base", ColumnKind.TEXT, is_wide=True),
    Column("shape", "Shape", ColumnKind.SHAPE, formula="of ΔW as the base stores the weight"),
    Column("rank", "r", ColumnKind.INTEGER, formula="rows of lora_A, columns of lora_B"),
    Column(
        "intruder_count",
        "Intruders",
        ColumnKind.INTEGER,
        formula="#{i ≤ top: max_j |u_j(W)ᵀu_i(W+ΔW)| < threshold}",
        reference=_REFERENCE,
    ),
    Column("smallest_cosine", "Smallest cosine", formula="min_i max_j |u_j(W)ᵀu_i(W+ΔW)|", low=0.0, high=1.0),
    Column("threshold", "Threshold", is_marker=True, low=0.0, high=1.0),
    Column(
        "singular_values",
        "σ of W+ΔW",
        ColumnKind.CURVE,
        formula="the first σ of W+ΔW",
        index_title="i",
        is_logarithmic=True,
    ),
    Column(
        "max_cosines",
        "Largest cosine",
        ColumnKind.CURVE,
        formula="max_j |u_j(W)ᵀu_i(W+ΔW)| over every left vector of W whose σ is not zero",
        reference=_REFERENCE,
        index_title="i",
        low=0.0,
        high=1.0,
    ),
    Column("intruders", "Intruders", ColumnKind.RECORDS, formula="index i from 1, its σ, its largest cosine"),
)
_TOTALS: Final = (
    Column("modules", "Modules", ColumnKind.INTEGER),
    Column("modules_with_intruders", "Modules with intruders", ColumnKind.INTEGER),
    Column("intruders", "Intruders", ColumnKind.INTEGER),
    Column("cache_bytes", "Decompositions kept", ColumnKind.BYTES, formula="of this and other bases, on disk"),
    Column("cache_limit_bytes", "Room for them", ColumnKind.BYTES),
)


class Intruders:
    """The first left singular vectors of W + ΔW that have a small cosine with every one of W's.

    Notes
    -----
    Left vectors are those of the matrix that multiplies, (out, in), whatever the base stores: an embedding's lie in the
    space of its outputs. Of a W with more outputs than inputs, or that is rank-deficient, the vectors of σ = 0 are no
    direction of W and none is compared with: what ΔW puts there is an intruder. PEFT's
    ``reduce_intruder_dimension`` takes weights as stored, and counts an arbitrary basis of W's null space where
    out ≤ in; everywhere else it decides by the same cosines.
    """

    id = "intruders"
    title = "Intruder dimensions"
    summary = "Leading directions of W+ΔW that are none of W's own."
    reference = _REFERENCE
    parameters = (
        Parameter("top", "Leading directions", ParameterKind.INTEGER, 10, minimum=1, maximum=1000),
        Parameter("threshold", "Largest cosine below which one intrudes", ParameterKind.NUMBER, 0.5, 0.0, 1.0),
    )
    subjects = (1, 1)
    takes_models = False
    base = Need.REQUIRED

    def reads(self, context: AnalysisContext) -> list[TensorRef]:
        """The weight under each module, once."""
        return placed(context).parts

    def run(self, context: AnalysisContext) -> Report:
        """Decompose each weight once, or take its decomposition from the store, and compare.

        Raises
        ------
        AdapterError
            ΔW cannot be computed from the adapter's files, or no module matches.
        CompatibilityError
            the base has no weights, or none of the modules.

        Notes
        -----
        A module that cannot be computed (no weight of its shape, NaN in it, packed numbers) is a finding; the others
        are computed.
        """
        placing = placed(context)
        work = _Work(context, placing)
        rows = list(watched(work.rows(), len(placing.deltas), context.observer))
        return Report(
            command=self.id,
            title=f"Intruder dimensions of {placing.adapter.name} in {placing.base.name}",
            tables=(Table("modules", "Modules", _COLUMNS, tuple(rows)),),
            scalars=(
                placing.scalars("Intruders"),
                Scalars("totals", "Totals", _TOTALS, _totals(rows, context.store)),
            ),
            findings=placing.findings(work.findings()),
        )


class _Result(NamedTuple):
    """What a worker made of one module; ``fresh`` is a decomposition that was not in the store, for ``key``."""

    merged: Merged
    rank: int
    sides: tuple[int, int]
    key: str
    fresh: WeightBasis | None


class _Work:
    """Reads weights and factors, has them compared, and remembers what has to be said."""

    def __init__(self, context: AnalysisContext, placing: Placing) -> None:
        self._context = context
        self._placing = placing
        self._threshold = float(context.parameters["threshold"])
        self._top = int(context.parameters["top"])
        self._faults: list[Finding] = []
        self._zero_deltas: list[str] = []
        self._zero_weights: list[str] = []
        self._cancelled: list[str] = []
        self._deficient: list[tuple[str, int, int]] = []  # module, numerical rank, smaller side

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row for each module, in order; several are computed side by side where memory allows."""
        from lora_lab.linalg.side_by_side import side_by_side
        from lora_lab.linalg.tridiagonal import TridiagonalProcesses

        with TridiagonalProcesses() as processes:
            for group in _groups(self._placing, self._context.device):
                for delta, result in zip(group, side_by_side(self._tasks(group, processes)), strict=True):
                    yield self._row(delta, result)

    def _tasks(
        self, deltas: Sequence[Delta], processes: TridiagonalProcesses
    ) -> Iterator[tuple[int, Callable[[], _Result | NumericalError]]]:
        for delta in deltas:
            if self._context.observer.is_cancelled():
                processes.close()  # whoever waits for one need not be waited for
            stop_if_cancelled(self._context.observer)
            yield self._task(delta, processes)

    def _task(
        self, delta: Delta, processes: TridiagonalProcesses
    ) -> tuple[int, Callable[[], _Result | NumericalError]]:
        """Read what `delta` needs, here and now, and give the work that is left and the bytes that it holds."""
        from lora_lab.linalg.decompositions import (
            compare_changed,
            compare_merged,
            decompose_weight,
            dora_weight,
            pissa_pair,
        )
        from lora_lab.linalg.spectra import Pair
        from lora_lab.linalg.weight_basis import VERSION, basis_from

        context = self._context
        try:
            factors = context.reader.factors(delta)
        except NumericalError as error:
            fault = error  # the name of an except clause ends with it
            return 0, lambda: fault
        part = self._placing.part(delta)
        weight = context.reader.tensor(part).flatten(1)
        turned = is_turned(factors, weight.shape)
        if turned:
            weight = weight.T
        shape = (int(weight.shape[0]), int(weight.shape[1]))
        key = store_key(part, "intruders", VERSION, turned)
        known = basis_from(shape, context.store.get(key)) if context.store else None
        pair = Pair(delta.module, factors.lora_A, factors.lora_B, factors.scaling)
        magnitude = None if delta.magnitude is None else context.reader.tensor(delta.magnitude).reshape(-1)
        if known is None or magnitude is not None:
            processes.expect(shape, context.device)

        def task() -> _Result | NumericalError:
            there = weight.to(context.device)
            try:
                basis = known or decompose_weight(there, name=part.name, processes=processes)
                change = pissa_pair(there, basis, pair) if self._placing.is_moved else pair
                if magnitude is None:
                    merged = compare_merged(there, basis, change, self._top)
                else:
                    changed = dora_weight(weight, change, magnitude).to(context.device)
                    merged = compare_changed(there, basis, changed, self._top, processes=processes)
            except NumericalError as error:
                return error
            return _Result(merged, basis.rank, shape, key, None if known else basis)

        return weight.nbytes + (known.size_bytes if known else 0), task

    def _row(self, delta: Delta, result: _Result | NumericalError) -> dict[str, Any]:
        part = self._placing.part(delta)
        row: dict[str, Any] = {column.id: None for column in _COLUMNS}
        row |= {"module": delta.module, "tensor": part.name, "shape": list(part.shape), "rank": delta.rank}
        row["threshold"] = self._threshold
        if isinstance(result, NumericalError):
            self._faults.append(fault_finding(delta.module, result))
            return row
        if result.fresh is not None and self._context.store:
            self._context.store.put(result.key, result.fresh.to_tensors())
        self._note(delta, result)
        values, cosines = result.merged.singular_values.tolist(), result.merged.max_cosines.tolist()
        row["singular_values"] = values
        if result.rank and values:
            found = [
                {"index": index, "singular_value": value, "max_cosine": cosine}
                for index, (value, cosine) in enumerate(zip(values, cosines, strict=True), start=1)
                if cosine < self._threshold
            ]
            row |= {"max_cosines": cosines, "smallest_cosine": min(cosines), "intruders": found}
            row["intruder_count"] = len(found)
        return row

    def _note(self, delta: Delta, result: _Result) -> None:
        if result.merged.is_unchanged:
            self._zero_deltas.append(delta.module)
        if not result.rank:
            self._zero_weights.append(delta.module)
        elif not result.merged.singular_values.numel():
            self._cancelled.append(delta.module)
        elif result.rank < min(result.sides):
            self._deficient.append((delta.module, result.rank, min(result.sides)))

    def findings(self) -> Iterator[Finding]:
        """Yield everything that was met on the way."""
        yield from self._faults
        if self._zero_deltas:
            yield module_finding(
                "zero_delta", self._zero_deltas, "ΔW is zero in {}: W+ΔW has W's own directions, and none intrudes."
            )
        if self._zero_weights:
            yield module_finding(
                "zero_weight",
                self._zero_weights,
                "The weight of {} is zero: it has no directions, and no cosine with them is defined.",
            )
        if self._cancelled:
            yield module_finding("zero_sum", self._cancelled, "W+ΔW is zero in {}: it has no directions.")
        if self._deficient:
            module, rank, sides = min(self._deficient, key=lambda one: one[1] / one[2])
            names = [name for name, _, _ in self._deficient]
            yield Finding(
                "zero_directions",
                f"Numerically zero directions of W are not compared with in {listed(names)}: the fewest left are "
                f"{rank} of {sides}, in {quoted(module)}.",
                names[0] if len(names) == 1 else None,
            )


def _groups(placing: Placing, device: str) -> Iterator[list[Delta]]:
    """Runs of modules that may be worked on side by side: all, unless as many as there are processors need too much."""
    from lora_lab.linalg.threads import worker_count

    at_once = worker_count()
    group: list[Delta] = []
    held = largest = 0
    for delta in placing.deltas:
        shape = placing.part(delta).shape
        needed = 4 * prod(shape) + _SQUARES * 8 * min(shape[0], prod(shape[1:])) ** 2
        largest = max(largest, needed)
        is_full = at_once * largest > _WINDOW_BYTES and held + needed > _WINDOW_BYTES
        if group and (is_full or device != "cpu"):
            yield group
            group, held, largest = [], 0, needed
        group.append(delta)
        held += needed
    if group:
        yield group


def _totals(rows: Sequence[dict[str, Any]], store: ArrayStore | None) -> dict[str, Any]:
    counts = [row["intruder_count"] for row in rows if row["intruder_count"] is not None]
    return {
        "modules": len(counts),
        "modules_with_intruders": sum(count > 0 for count in counts),
        "intruders": sum(counts),
        "cache_bytes": store.size_bytes if store else None,
        "cache_limit_bytes": store.limit_bytes if store else None,
    }
