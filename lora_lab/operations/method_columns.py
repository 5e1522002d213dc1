"""What is said of each method that is compared with others; a shell may show rows before all are there."""

from __future__ import annotations

from typing import Final

from lora_lab.domain.report import Column, ColumnKind

METHODS: Final = (
    Column("id", "Method", ColumnKind.TEXT),
    Column("relative_error", "Lost", formula="√Σ‖D − ΔW‖²/√Σ‖D‖², D what the method says, ΔW as it is written"),
    Column("sum_distance", "Off the sum", formula="√Σ‖Σ wᵢΔWᵢ − ΔW‖²/√Σ‖Σ wᵢΔWᵢ‖²"),
    Column("rank_min", "r min", ColumnKind.INTEGER),
    Column("rank_max", "r max", ColumnKind.INTEGER),
    Column("size_bytes", "Size", ColumnKind.BYTES),
    Column("parameters", "Parameters", ColumnKind.INTEGER),
    Column("norm", "‖D‖_F", formula="√Σ‖D‖²"),
    Column("refused", "Refused", ColumnKind.TEXT),
    Column("settings", "Settings", ColumnKind.VALUE, is_wide=True),
    Column("title", "Title", ColumnKind.TEXT, is_wide=True),
)
