"""The same adapters combined with several sets of strengths: one output each, and all of them or none."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.parameters import parse_parameters
from lora_lab.domain.progress import Stage, Unwatched
from lora_lab.domain.report import Column, ColumnKind, Report, Table
from lora_lab.errors import LoraLabError, quoted
from lora_lab.operations.combine import CombineTarget, Recipe, supply_of
from lora_lab.operations.combine_options import CombineOptions
from lora_lab.operations.joining import joints_of
from lora_lab.operations.saved_modules import gather_saved

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.extension.contracts import MergeMethod, Reader

SWEEP: Final = (
    Column("output", "Output", ColumnKind.TEXT),
    Column("strengths", "Strengths", ColumnKind.LIST),
    Column("relative_error", "Relative error", formula="√Σ‖D − ΔW‖²/√Σ‖D‖², ΔW as it is written"),
    Column("norm", "‖D‖_F", formula="√Σ‖D‖² of what the method says"),
    Column("rank_min", "r min", ColumnKind.INTEGER),
    Column("rank_max", "r max", ColumnKind.INTEGER),
    Column("size_bytes", "Size", ColumnKind.BYTES),
    Column("parameters", "Parameters", ColumnKind.INTEGER),
    Column("sha256", "sha256 of the weights", ColumnKind.TEXT, is_wide=True),
)


def output_of(stem: Path, strengths: Sequence[float]) -> Path:
    """The folder that a sweep gives the output of some strengths: the strengths stand behind its name.

    Examples
    --------
    >>> from pathlib import Path
    >>> output_of(Path("mixed"), [0.7, 1.0, -0.25]).name
    'mixed-0.7-1--0.25'
    """
    return stem.with_name("-".join([stem.name, *(repr(float(one)).removesuffix(".0") for one in strengths)]))


def sweep(
    adapters: Sequence[Adapter],
    method: MergeMethod,
    target: CombineTarget,
    strengths: Sequence[Sequence[float]],
    *,
    reader: Reader,
    options: CombineOptions | None = None,
    parameters: Mapping[str, Any] | None = None,
    base: Base | None = None,
    observer: Observer | None = None,
) -> Report:
    """Combine adapters once with each set of strengths.

    The factors are read once. Every output is what :func:`~lora_lab.operations.combine.combine` makes of these
    strengths, with a receipt of its own, beside the others: :func:`output_of` names it. None gets its name before all
    are complete.

    Parameters
    ----------
    target : its output is the stem of the names
    strengths : sets of one for each adapter

    Returns
    -------
    one row for each output, in the order given

    Raises
    ------
    LoraLabError
        there are no strengths, a set is there twice, or as :func:`~lora_lab.operations.combine.combine`; then no output
        is there.

    Notes
    -----
    Memory for the inputs and one result.
    """
    watcher = observer or Unwatched()
    options = options or CombineOptions()
    values = parse_parameters(method.parameters, parameters or {})
    chosen = [replace(options, strengths=tuple(map(float, one))) for one in strengths]
    recipes = [Recipe(adapters, method, one, values, base=base) for one in chosen]
    targets = [replace(target, output=output_of(target.output, one.strengths)) for one in chosen]
    _require_sound(adapters, chosen, targets, base)
    reports = _made(recipes, targets, reader, watcher)
    rows = [_row(*one) for one in zip(reports, targets, chosen, strict=True)]
    return _summary(adapters, method, rows, reports)


def _made(
    recipes: Sequence[Recipe], targets: Sequence[CombineTarget], reader: Reader, watcher: Observer
) -> list[Report]:
    """Make every output, and give all of them their names at the end; the receipts."""
    adapters, base = recipes[0].adapters, recipes[0].base
    joints = joints_of(adapters, recipes[0].options, has_base=base is not None)
    supply, findings = supply_of(adapters, joints, base, reader, is_kept=True)
    reports = []
    with ExitStack() as stack:
        folders = []
        for place, (recipe, target) in enumerate(zip(recipes, targets, strict=True)):
            started = time.perf_counter()
            saved = gather_saved(adapters, recipe.options, reader)
            stage = Stage(watcher, place, len(recipes), len(joints), target.output.name)
            made = recipe.made(joints, supply, saved, stage).with_findings(findings)
            if target.is_dry:
                reports.append(made.planned(target))
            else:
                staged = stack.enter_context(made.staged(target))
                folders.append(staged)
                reports.append(made.write(staged, target, watcher, started=started))
            watcher.rows("sweep", [_row(reports[-1], target, recipe.options)])
        for staged in folders:
            staged.settle()  # what goes wrong with a last file is known before any has its name
        for staged in folders:
            staged.commit()
    return reports


def _require_sound(
    adapters: Sequence[Adapter],
    chosen: Sequence[CombineOptions],
    targets: Sequence[CombineTarget],
    base: Base | None,
) -> None:
    if not adapters or not chosen:
        raise LoraLabError("There is nothing to combine, expected an adapter and a set of strengths.")
    for options in chosen:
        options.strengths_for(adapters)
        if not options.strengths:
            raise LoraLabError("A set of strengths is empty, expected one strength for each adapter.")
    names = [str(target.output) for target in targets]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise LoraLabError(f"Two sets of strengths are the same: both would be {quoted(twice)}.")
    for target in targets:
        target.require_free(adapters, base)


def _row(report: Report, target: CombineTarget, options: CombineOptions) -> dict[str, Any]:
    totals = next(group.values for group in report.scalars if group.id == "totals")
    files = report.table("outputs").rows
    return {
        "output": str(target.output),
        "strengths": list(options.strengths),
        **{name: totals[name] for name in ("rank_min", "rank_max", "parameters")},
        "size_bytes": sum(row["size_bytes"] for row in files),
        **{name: totals[name] for name in ("norm", "relative_error")},
        "sha256": next((row["sha256"] for row in files if row["path"].endswith(".safetensors")), ""),
    }


def _summary(
    adapters: Sequence[Adapter], method: MergeMethod, rows: Sequence[Mapping[str, Any]], reports: Sequence[Report]
) -> Report:
    names = ", ".join(adapter.name for adapter in adapters)
    findings = dict.fromkeys(finding for report in reports for finding in report.findings)
    return Report(
        command="combine",
        title=f"{method.title} of {names} at {len(rows)} strengths",
        tables=(Table("sweep", "Outputs", SWEEP, tuple(rows), key="output"),),
        findings=tuple(findings),
        inputs=reports[-1].inputs,
    )
