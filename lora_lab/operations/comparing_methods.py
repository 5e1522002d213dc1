"""What each method would make of the same adapters, and what it would lose: computed in full, nothing written."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from lora_lab.domain.parameters import parse_parameters
from lora_lab.domain.progress import Stage, Unwatched
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import CancelledError, CompatibilityError, LoraLabError, quoted
from lora_lab.linalg.approximation import square_of_difference
from lora_lab.linalg.changes import sum_of_changes
from lora_lab.linalg.combining import distance_of_factors, side_by_side_factors
from lora_lab.linalg.side_by_side import side_by_side
from lora_lab.linalg.spectra import Pair
from lora_lab.methods.entry_based import parts_of
from lora_lab.operations.combine import Recipe, supply_of
from lora_lab.operations.joining import joints_of, widest
from lora_lab.operations.method_columns import METHODS
from lora_lab.operations.saved_modules import Saved, gather_saved

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.extension.contracts import MergeMethod, Reader
    from lora_lab.operations.combine_options import CombineOptions
    from lora_lab.operations.combining import Joined
    from lora_lab.operations.joining import Joint
    from lora_lab.operations.supply import Portion, Supply

SUM: Final = (
    Column("strengths", "Strengths", ColumnKind.LIST),
    Column("modules", "Modules", ColumnKind.INTEGER),
    Column("norm", "‖Σ wᵢΔWᵢ‖_F"),
    Column("dtype", "dtype", ColumnKind.TEXT),
)


def compare_methods(
    adapters: Sequence[Adapter],
    methods: Sequence[MergeMethod],
    *,
    reader: Reader,
    options: CombineOptions,
    settings: Mapping[str, Any] | None = None,
    base: Base | None = None,
    observer: Observer | None = None,
) -> Report:
    """Run every method on the same adapters as :func:`~lora_lab.operations.combine.combine` would.

    Parameters
    ----------
    options : strengths, and how much is kept
    base : behind adapters whose change is known with it alone
    settings : parameters, given to every method that has one of the name; ``METHOD.NAME`` is for one method alone

    Returns
    -------
    one row for each method, with the very numbers of its receipt; what a method refuses is said in its row

    Raises
    ------
    LoraLabError
        the adapters cannot be combined by any method, or no method has a parameter that is given.

    Notes
    -----
    Memory for the inputs and one result; the time of all methods together.
    """
    watcher = observer or Unwatched()
    settings = settings or {}
    _require_known(methods, settings)
    options.strengths_for(adapters)
    joints = joints_of(adapters, options, has_base=base is not None)
    supply, findings = supply_of(adapters, joints, base, reader, is_kept=True)
    table = _Table(adapters, joints, supply, options)
    findings += table.take_saved(reader)
    rows = []
    for place, method in enumerate(methods):
        given = _own(method, settings)
        row = table.row_or_refusal(method, given, Stage(watcher, place, len(methods), len(joints), method.id))
        if row["refused"]:
            findings.append(Finding("refused", f"{method.id}: {row['refused']}"))
        rows.append(row)
        watcher.rows("methods", rows[-1:])
    told = {
        "strengths": list(options.strengths_for(adapters)),
        "modules": len(joints),
        "norm": table.norm(watcher),
        "dtype": (options.dtype or widest(joints)).value,
    }
    return Report(
        command="methods",
        title=f"What the methods make of {', '.join(adapter.name for adapter in adapters)}",
        tables=(Table("methods", "Methods", METHODS, tuple(rows), key="id"),),
        scalars=(Scalars("sum", "The exact sum", SUM, told),),
        findings=tuple(findings),
    )


class _Table:
    """What all rows have in common."""

    def __init__(
        self, adapters: Sequence[Adapter], joints: Sequence[Joint], supply: Supply, options: CombineOptions
    ) -> None:
        self._adapters = adapters
        self._joints = joints
        self._supply = supply
        self._options = options
        self._saved = Saved()
        self._norm: float | None = None

    def take_saved(self, reader: Reader) -> list[Finding]:
        """Whole modules, which are the same for every method; where nobody said whose, they are in no size."""
        try:
            self._saved = gather_saved(self._adapters, self._options, reader)
        except CompatibilityError as error:
            return [Finding("saved_modules_undecided", f"{error.message} They are in no size here. {error.hint}")]
        return list(self._saved.findings)

    def row_or_refusal(self, method: MergeMethod, settings: Mapping[str, Any], observer: Observer) -> dict[str, Any]:
        """The row of one method; what it raises, but a cancellation, stands in it."""
        row: dict[str, Any] = {"id": method.id, "title": method.title, "settings": settings}
        try:
            row |= self.row(method, settings, observer)
        except CancelledError:
            raise
        except LoraLabError as error:
            row["refused"] = error.message
        return {column.id: row.get(column.id) for column in METHODS}

    def row(self, method: MergeMethod, settings: Mapping[str, Any], observer: Observer) -> dict[str, Any]:
        """The numbers of one method."""
        values = parse_parameters(method.parameters, settings)
        recipe = Recipe(self._adapters, method, self._options, values)
        made = recipe.made(self._joints, self._supply, self._saved, observer)
        totals = next(group.values for group in made.report.scalars if group.id == "totals")
        away = self._distances(made.modules, observer)
        whole = self.norm(observer)
        return {
            **{name: totals[name] for name in ("rank_min", "rank_max", "parameters", "norm", "relative_error")},
            "settings": recipe.arguments["settings"],
            "size_bytes": sum(made.files.sizes.values()),
            "sum_distance": away / whole if whole > 0.0 else None,
        }

    def norm(self, observer: Observer) -> float:
        """‖Σ wᵢΔWᵢ‖_F of all modules together."""
        if self._norm is None:
            self._norm = self._distances(None, observer)
        return self._norm

    def _distances(self, modules: Sequence[Joined] | None, observer: Observer) -> float:
        """√Σ‖Σ wᵢΔWᵢ − ΔW‖² of what was made, or of nothing."""
        strengths = self._options.strengths_for(self._adapters)

        def one(place: int, portion: Portion) -> float:
            own = [strengths[place] for place in portion.joint.places]
            sides = portion.joint.sides
            made = (torch.zeros(sides[0], 0), torch.zeros(0, sides[1]))
            if modules is not None:
                made = (modules[place].lora_B, modules[place].lora_A)
            if not portion.is_factored:
                with portion.changes() as changes:
                    whole = sum_of_changes(parts_of(changes, portion.joint.module), own)
                    wide = (made[0].to(torch.float64), made[1].to(torch.float64))
                    return math.sqrt(square_of_difference(whole, *wide))
            pairs = [Pair(portion.joint.module, one.lora_A, one.lora_B, one.scaling) for one in portion.factors]
            return distance_of_factors(*side_by_side_factors(pairs, own), *made)

        portions = self._supply.portions(self._joints, observer)
        tasks = ((portion.size_bytes, partial(one, place, portion)) for place, portion in enumerate(portions))
        return math.hypot(*side_by_side(tasks))


def _own(method: MergeMethod, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `settings` that this method has: by their name, or by its own and theirs, which wins."""
    names = {parameter.id for parameter in method.parameters}
    own = {name: value for name, value in settings.items() if name in names}
    return own | {
        name.removeprefix(f"{method.id}."): value
        for name, value in settings.items()
        if name.startswith(f"{method.id}.")
    }


def _require_known(methods: Sequence[MergeMethod], settings: Mapping[str, Any]) -> None:
    known = {parameter.id for method in methods for parameter in method.parameters}
    known |= {f"{method.id}.{parameter.id}" for method in methods for parameter in method.parameters}
    unknown = next((name for name in settings if name not in known), None)
    if unknown is not None:
        plain = ", ".join(sorted(name for name in known if "." not in name)) or "none"
        raise LoraLabError(
            f"No method has a parameter {quoted(unknown)}, expected one of: {plain}.",
            hint="METHOD.NAME is for one method alone.",
        )
