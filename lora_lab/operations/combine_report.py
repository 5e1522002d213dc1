"""What a combination says of itself: rank and error of every module, and what was done."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.summaries import summarised
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import quoted
from lora_lab.operations.joining import widest
from lora_lab.operations.receipt import OUTPUTS, SUMMARY, versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.report import InputRecord
    from lora_lab.extension.contracts import MergeMethod
    from lora_lab.operations.combine_options import CombineOptions
    from lora_lab.operations.combining import Joined
    from lora_lab.operations.saved_modules import Saved

MODULES: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("kind", "Kind", ColumnKind.TEXT, is_wide=True),
    Column("shape", "Shape", ColumnKind.SHAPE),
    Column("adapters", "Adapters", ColumnKind.INTEGER),
    Column("ranks", "r before", ColumnKind.LIST),
    Column("rank", "r", ColumnKind.INTEGER),
    Column("norm", "‖D‖_F", formula="of what the method says"),
    Column("relative_error", "Relative error", formula="‖D − ΔW‖_F/‖D‖_F, ΔW as it is written"),
    Column("parameters", "Parameters", ColumnKind.INTEGER),
)
DONE: Final = (*SUMMARY, Column("plugins", "Plugins", ColumnKind.VALUE, is_wide=True))
TOTALS: Final = (
    Column("modules", "Modules", ColumnKind.INTEGER),
    Column("rank_min", "Smallest r", ColumnKind.INTEGER),
    Column("rank_max", "Largest r", ColumnKind.INTEGER),
    Column("parameters", "Parameters", ColumnKind.INTEGER),
    Column("parameters_before", "Parameters of the inputs", ColumnKind.INTEGER),
    Column("norm", "‖D‖_F", formula="√Σ‖D‖², of modules that are left out too"),
    Column("relative_error", "Relative error", formula="√Σ‖D − ΔW‖²/√Σ‖D‖², what is left out counted whole"),
    Column("dtype", "dtype", ColumnKind.TEXT),
    Column("left_out", "Left out", ColumnKind.LIST, formula="modules that the number of parameters leaves no rank for"),
    Column("saved_modules", "Saved whole", ColumnKind.LIST),
)


def _row(module: Joined) -> dict[str, Any]:
    return {
        "module": module.joint.module,
        "kind": module.joint.first.kind.value,
        "shape": list(module.joint.first.shape),
        "adapters": len(module.joint.deltas),
        "ranks": [delta.rank for delta in module.joint.deltas],
        "rank": module.rank,
        "norm": module.norm,
        "relative_error": module.relative_error,
        "parameters": module.lora_A.numel() + module.lora_B.numel(),
    }


def report_of(
    operation: str,
    adapters: Sequence[Adapter],
    method: MergeMethod,
    modules: Sequence[Joined],
    saved: Saved,
    options: CombineOptions,
) -> Report:
    """What came of every module; one of rank 0 is in no file."""
    rows = [_row(module) for module in modules if module.rank]
    left_out = [module.joint.module for module in modules if not module.rank]
    norm = math.hypot(*(module.norm for module in modules))
    totals = {
        "modules": len(rows),
        "rank_min": min(row["rank"] for row in rows),
        "rank_max": max(row["rank"] for row in rows),
        "parameters": sum(row["parameters"] for row in rows),
        "parameters_before": sum(adapter.parameters for adapter in adapters),
        "norm": norm,
        "relative_error": math.hypot(*(module.error for module in modules)) / norm if norm > 0.0 else None,
        "dtype": (options.dtype or widest([module.joint for module in modules])).value,
        "left_out": left_out,
        "saved_modules": saved.modules if saved.tensors else [],
    }
    names = ", ".join(adapter.name for adapter in adapters)
    title = f"{names}, resized" if operation == "resize" else f"{method.title} of {names}"
    return Report(
        command=operation,
        title=title,
        tables=(Table("modules", "Modules", MODULES, tuple(rows)),),
        scalars=(Scalars("totals", "Totals", TOTALS, totals),),
        findings=(*saved.findings, *_findings(adapters, modules, left_out)),
    )


def _findings(adapters: Sequence[Adapter], modules: Sequence[Joined], left_out: Sequence[str]) -> list[Finding]:
    findings = []
    bases = list(dict.fromkeys(adapter.base_model for adapter in adapters if adapter.base_model))
    if len(bases) > 1:
        findings.append(
            Finding(
                "other_base", f"The adapters name different bases, {', '.join(map(quoted, bases))}: the first is kept."
            )
        )
    zero = [module.joint.module for module in modules if module.rank and module.norm == 0.0]
    if zero:
        findings.append(Finding("zero_delta", f"ΔW is zero in {len(zero)} modules: {summarised(map(quoted, zero))}."))
    if left_out:
        told = summarised(map(quoted, left_out))
        findings.append(Finding("left_out", f"The parameters leave no rank for {len(left_out)} modules: {told}."))
    return findings


def with_receipt(
    report: Report,
    operation: str,
    arguments: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    numbers: Mapping[str, Any],
    inputs: Sequence[InputRecord],
    plugins: Mapping[str, str],
) -> Report:
    """`report` with what was read and written.

    Parameters
    ----------
    rows : of the files
    numbers : seconds, bytes_read, bytes_written, peak_memory_bytes; absent where nothing was written
    plugins : version of each distribution whose code took part
    """
    keys = ("seconds", "bytes_read", "bytes_written", "peak_memory_bytes")
    values = {
        "operation": operation,
        "arguments": dict(arguments),
        **{key: numbers.get(key) for key in keys},
        "versions": versions(),
        "plugins": dict(plugins),
    }
    return replace(
        report,
        inputs=tuple(inputs),
        tables=(Table("outputs", "Files", OUTPUTS, tuple(rows), key="path"), *report.tables),
        scalars=(Scalars("", "Receipt", DONE, values), *report.scalars),
    )
