"""Results as they were written down once; nothing is timed."""

from __future__ import annotations

from typing import Any

from lora_lab.benchmarks.latency.adapters import VARIANTS
from lora_lab.benchmarks.latency.table import rows_table
from lora_lab.benchmarks.swapping.table import strategies_table
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars

ENVIRONMENT = {"device": "cpu", "cpu": "Some Processor", "threads": 2, "torch": "2.13.0"}
STRATEGIES = {"reload": 0.5, "fused": 0.03125, "hotswap": 0.00390625}


def scalars(**changed: Any) -> Scalars:
    """Where it was measured."""
    columns = tuple(Column(name, name.capitalize(), ColumnKind.VALUE) for name in ENVIRONMENT)
    return Scalars("environment", "Environment", columns, {**ENVIRONMENT, **changed})


def spread(seconds: float) -> dict[str, Any]:
    """Cells of a median with a narrow interval."""
    ends = {"low_seconds": seconds * 0.96875, "high_seconds": seconds * 1.03125}
    return {"p50_seconds": seconds, "p95_seconds": seconds * 1.25, **ends, "noise": 0.0625, "runs": 10}


def swap_report(scale: float = 1.0, **environment: Any) -> Report:
    """Three strategies, of which one did not give the base back."""
    rows = [
        {
            "id": name,
            **spread(seconds * scale),
            "times_copy": 4.0 * seconds,
            "bit_exact": name != "fused",
            "relative_drift": 0.0 if name != "fused" else 0.001953125,
            "bytes_moved": 1_000_000,
        }
        for name, seconds in STRATEGIES.items()
    ]
    return Report(
        "bench swap",
        "one ⇄ two on base",
        tables=(strategies_table(rows),),
        scalars=(scalars(**environment),),
        findings=(Finding("noisy_machine", "The machine was noisy: others took 20%."),),
    )


def latency_report(scale: float = 1.0) -> Report:
    """One cell."""
    rows = [
        {
            "variant": variant,
            "batch": 1,
            "length": 128,
            **spread((0.5 + place / 8) * scale),
            "overhead": place / 4,
            "overhead_low": place / 4 - 0.03125,
            "overhead_high": place / 4 + 0.03125,
            "published_overhead": None,
            "parameters": 1024 * place,
        }
        for place, variant in enumerate(VARIANTS)
    ]
    return Report("bench latency", "Forward pass, shapes of base", tables=(rows_table(rows),), scalars=(scalars(),))


def samples(strategies: tuple[str, ...] = ("reload", "fused", "hotswap"), runs: int = 8) -> list[dict[str, Any]]:
    """Rows that a job sends: of each strategy times around its median."""
    shapes = (0.0, 0.03125, -0.03125, 0.0, 0.0625, 0.0, -0.03125, 0.25)
    return [
        {"id": name, "run": run + 1, "seconds": STRATEGIES[name] * (1.0 + shapes[run % len(shapes)])}
        for run in range(runs)
        for name in strategies
    ]
