"""The columns of the latency benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_lab.benchmarks.columns import SPREAD
from lora_lab.benchmarks.latency.published import SOURCE
from lora_lab.domain.report import Column, ColumnKind, Scalars, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.benchmarks.latency.blocks import BlockShape

_PAIRED: Final = "P(the median of paired rounds within) ≥ 95 %"
_ROWS: Final = (
    Column("variant", "Variant", ColumnKind.TEXT),
    Column("batch", "Batch", ColumnKind.INTEGER),
    Column("length", "Length", ColumnKind.INTEGER),
    SPREAD[0],
    Column("overhead", "Overhead", formula="median of the ratios to the base's run of one round − 1"),
    Column("overhead_low", "from", formula=_PAIRED),
    Column("overhead_high", "to", formula=_PAIRED),
    Column("published_overhead", "Paper's overhead", formula="of its own machine", reference=SOURCE),
    Column("published_seconds", "Paper's", unit="s", formula="of its own machine", reference=SOURCE, is_wide=True),
    Column("parameters", "Added parameters", ColumnKind.INTEGER, formula="in the layers measured", is_wide=True),
    *SPREAD[1:],
)
_WORKLOAD: Final = (
    Column("model", "Shapes of", ColumnKind.TEXT),
    Column("layers", "Layers", ColumnKind.INTEGER),
    Column("model_layers", "Layers of the model", ColumnKind.INTEGER, is_wide=True),
    Column("hidden", "Hidden size", ColumnKind.INTEGER),
    Column("heads", "Heads", ColumnKind.INTEGER, is_wide=True),
    Column("kv_heads", "Key/value heads", ColumnKind.INTEGER, is_wide=True),
    Column("head_dim", "Head size", ColumnKind.INTEGER, is_wide=True),
    Column("inner", "Feed-forward size", ColumnKind.INTEGER, is_wide=True),
    Column("is_gated", "Gated", ColumnKind.VALUE, is_wide=True),
    Column("dtype", "dtype", ColumnKind.TEXT),
    Column("rank", "Rank", ColumnKind.INTEGER),
    Column("targets", "LoRA on", ColumnKind.LIST),
    Column("bottlenecks", "Bottleneck widths", ColumnKind.LIST, formula="one a block; two of half of it for Houlsby"),
    Column("grid", "Batch × length", ColumnKind.LIST, is_wide=True),
    Column("repeats", "Rounds", ColumnKind.LIST, formula="of each cell", is_wide=True),
    Column("copies", "Sets of weights", ColumnKind.INTEGER, formula="in turns, so that no cache holds them"),
)


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """All variants of all cells."""
    return Table("rows", "One forward pass", _ROWS, tuple(rows), key="variant")


def workload_scalars(shape: BlockShape, settings: Mapping[str, Any]) -> Scalars:
    """What was run."""
    sizes = {name: getattr(shape, name) for name in ("hidden", "heads", "kv_heads", "head_dim", "inner", "is_gated")}
    return Scalars("workload", "Workload", _WORKLOAD, {**settings, **sizes})
