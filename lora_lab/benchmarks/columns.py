"""Columns that every benchmark has."""

from __future__ import annotations

from typing import Final

from lora_lab.domain.report import Column, ColumnKind

_MEDIAN: Final = "P(the true median within) ≥ 95 %, from order statistics"
SPREAD: Final = (
    Column("p50_seconds", "p50", unit="s", formula="median of the runs"),
    Column("p95_seconds", "p95", unit="s", formula="95th percentile of the runs, linear between neighbours"),
    Column("low_seconds", "p50 from", unit="s", formula=_MEDIAN, is_wide=True),
    Column("high_seconds", "p50 to", unit="s", formula=_MEDIAN, is_wide=True),
    Column("noise", "Noise", formula="(x(¾) − x(¼))/p50", is_wide=True),
    Column("runs", "Runs", ColumnKind.INTEGER, is_wide=True),
)
# What tells apart the rows of any benchmark's tables.
NAMES: Final = ("id", "strategy", "variant", "batch", "length", "adapters")
RUN: Final = (
    Column("worked_seconds", "Measured work", unit="s", formula="all that was timed, the warm-up included"),
    Column("total_seconds", "Whole run", unit="s"),
    Column("overhead", "Overhead", formula="whole run / measured work − 1"),
    Column("others_fraction", "Taken by others", formula="share of the processors' time", is_wide=True),
    Column("stolen_fraction", "Taken by the hypervisor", formula="share of the processors' time", is_wide=True),
)
