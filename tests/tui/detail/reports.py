"""Analyses against a base, and Reports such as they give: made up, so that every number is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tui.detail.made import EdgeAnalysis

from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.extension.contracts import Need


class Amplify(EdgeAnalysis):
    """Stands in for the analysis of that name."""

    id = "amplify"
    title = "Amplification"
    summary = "How far ΔW goes along directions that W hardly uses."
    reference = "arXiv 2106.09685, section 7.3"
    base = Need.REQUIRED


class Intruders(EdgeAnalysis):
    """Stands in for the analysis of that name."""

    id = "intruders"
    title = "Intruder dimensions"
    summary = "Leading directions of W+ΔW that are close to none of W's."
    reference = "arXiv 2410.21228"
    base = Need.REQUIRED


class Interference(EdgeAnalysis):
    """About two or more."""

    id = "interference"
    title = "Interference"
    subjects = (2, 64)


class BudgetAnalysis(EdgeAnalysis):
    """About a model, or about none."""

    id = "budget"
    title = "Budget"
    subjects = (0, 1)
    takes_models = True


def amplify_report(modules: Sequence[str]) -> Report:
    """Amplifications that rise from module to module; the last one is undefined."""
    rows: list[dict[str, Any]] = []
    for place, module in enumerate(modules):
        is_last = place == len(modules) - 1
        delta, projected = 6.91, 0.0 if is_last else 3.2 / (place + 1)
        rows.append(
            {
                "module": module,
                "tensor": f"{module}.weight",
                "shape": [128, 896],
                "rank": 4,
                "delta_norm": 0.0 if is_last else delta,
                "base_norm": 61.95,
                "projected": {"delta": None if is_last else projected, "base": 21.67, "random": 0.02},
                "amplification": None if is_last else delta / projected,
                "amplification_base": delta / 21.67,
                "amplification_random": delta / 0.02,
            }
        )
    largest = rows[-2]
    columns = (
        Column("module", "Module", ColumnKind.TEXT),
        Column("tensor", "Tensor", ColumnKind.TEXT, is_wide=True),
        Column("shape", "Shape", ColumnKind.SHAPE),
        Column("rank", "Rank", ColumnKind.INTEGER),
        Column("delta_norm", "‖ΔW‖_F"),
        Column("base_norm", "‖W‖_F"),
        Column("projected", "‖UᵀWV‖_F", ColumnKind.MAPPING),
        Column("amplification", "Amplification", formula="‖ΔW‖_F / ‖UᵀWV‖_F"),
        Column("amplification_base", "of W's own"),
        Column("amplification_random", "random"),
    )
    totals = Scalars(
        "totals",
        "Totals",
        (
            Column("modules", "Modules", ColumnKind.INTEGER),
            Column("median_amplification", "Median"),
            Column("median_random", "Median, random"),
            Column("largest_module", "Largest in", ColumnKind.TEXT),
            Column("largest_amplification", "Largest"),
        ),
        {
            "modules": len(rows),
            "median_amplification": rows[len(rows) // 2]["amplification"],
            "median_random": 345.5,
            "largest_module": largest["module"],
            "largest_amplification": largest["amplification"],
        },
    )
    prefix = Scalars("", "Match", (Column("prefix", "Prefix", ColumnKind.TEXT),), {"prefix": "model. removed"})
    finding = Finding("zero_delta", f"In '{modules[-1]}' ΔW is zero: amplification is undefined.", modules[-1])
    return Report(
        "amplify",
        "Amplification",
        (Table("modules", "Modules", columns, tuple(rows)),),
        (prefix, totals),
        (finding,),
        parameters={"rank": None, "draws": 0},
    )


def intruders_report(modules: Sequence[str]) -> Report:
    """Every third module has two intruders."""
    rows = []
    for place, module in enumerate(modules):
        cosines = [0.9 - 0.02 * k for k in range(10)]
        found = []
        if place % 3 == 1:
            for index in (3, 7):
                cosines[index - 1] = 0.1 * math.sqrt(index)
                found.append({"index": index, "singular_value": 5.0 / index, "max_cosine": cosines[index - 1]})
        rows.append(
            {
                "module": module,
                "tensor": f"{module}.weight",
                "shape": [128, 896],
                "rank": 4,
                "intruder_count": len(found),
                "smallest_cosine": min(cosines),
                "threshold": 0.5,
                "singular_values": [5.0 / (k + 1) for k in range(10)],
                "max_cosines": cosines,
                "intruders": found,
            }
        )
    columns = (
        Column("module", "Module", ColumnKind.TEXT),
        Column("tensor", "Tensor", ColumnKind.TEXT, is_wide=True),
        Column("shape", "Shape", ColumnKind.SHAPE),
        Column("rank", "Rank", ColumnKind.INTEGER),
        Column("intruder_count", "Intruders", ColumnKind.INTEGER),
        Column("smallest_cosine", "Smallest cosine"),
        Column("threshold", "threshold", is_marker=True),
        Column("singular_values", "σₖ of W+ΔW", ColumnKind.CURVE, index_title="k", is_logarithmic=True),
        Column("max_cosines", "largest cosine with W's", ColumnKind.CURVE, index_title="k"),
        Column("intruders", "Records", ColumnKind.RECORDS),
    )
    totals = Scalars(
        "totals",
        "Totals",
        (
            Column("modules", "Modules", ColumnKind.INTEGER),
            Column("modules_with_intruders", "With intruders", ColumnKind.INTEGER),
            Column("intruders", "Intruders", ColumnKind.INTEGER),
            Column("cache_bytes", "Cache", ColumnKind.BYTES),
        ),
        {
            "modules": len(rows),
            "modules_with_intruders": sum(bool(row["intruder_count"]) for row in rows),
            "intruders": sum(len(row["intruders"]) for row in rows),
            "cache_bytes": 12_300_000,
        },
    )
    return Report("intruders", "Intruders", (Table("modules", "Modules", columns, tuple(rows)),), (totals,))
