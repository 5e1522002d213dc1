"""What a strategy cost, as a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_lab.benchmarks.columns import SPREAD
from lora_lab.domain.report import Column, ColumnKind, Scalars, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.benchmarks.spread import Spread
    from lora_lab.benchmarks.swapping.workload import Workload

STRATEGIES: Final = (
    Column("id", "Strategy", ColumnKind.TEXT),
    *SPREAD[:2],
    Column("times_copy", "× copy", formula="p50 / time of copying the same weights at the copy bandwidth"),
    Column("bit_exact", "Bit exact", ColumnKind.VALUE, formula="after the last swap"),
    Column("relative_drift", "Drift", formula="‖W_n − right‖_F/‖right‖_F after n swaps, right being a merge into W"),
    Column("bytes_moved", "Bytes moved", ColumnKind.BYTES, unit="bytes", formula="read and written at least"),
    Column(
        "fraction_of_copy_bandwidth", "of copy bandwidth", formula="bytes moved / p50 / copy bandwidth of the same run"
    ),
    Column("peak_memory_bytes", "Peak memory", ColumnKind.BYTES, unit="bytes", formula="weights + kept + of one swap"),
    Column("kept_bytes", "Kept", ColumnKind.BYTES, unit="bytes", formula="besides weights and factors", is_wide=True),
    Column("swaps", "Swaps", ColumnKind.INTEGER, formula="n, of one set of weights", is_wide=True),
    Column("differing_fraction", "Differing", formula="share of the weights after n swaps", is_wide=True),
    Column(
        "prepare_seconds", "To prepare", unit="s", formula="once, the merge of the first adapter included", is_wide=True
    ),
    Column("restore_seconds", "To give the base back", unit="s", formula="once", is_wide=True),
    Column("restores_bit_exact", "Gives the base back", ColumnKind.VALUE, is_wide=True),
    *SPREAD[2:],
)
_LIMITS: Final = (
    Column("copy_bandwidth_bytes_per_second", "Copy bandwidth, a second", ColumnKind.BYTES, unit="bytes/s"),
    Column("copy_seconds", "Copying the weights", unit="s", formula="2 · bytes of the weights / bandwidth"),
)
_WORKLOAD: Final = (
    Column("modules", "Weights swapped", ColumnKind.INTEGER),
    Column("weight_bytes", "Their size", ColumnKind.BYTES, unit="bytes"),
    Column("dtypes", "dtype", ColumnKind.LIST),
    Column("ranks", "Ranks", ColumnKind.LIST),
    Column("copies", "Sets of weights", ColumnKind.INTEGER, formula="taken in turns, so that no cache holds them"),
    Column("repeats", "Repeats", ColumnKind.INTEGER),
)


def strategies_table(rows: Sequence[dict[str, Any]]) -> Table:
    """All strategies."""
    return Table("strategies", "Swap strategies", STRATEGIES, tuple(rows), key="id")


def workload_scalars(workload: Workload, copies: int, repeats: int) -> Scalars:
    """What was swapped."""
    values = {
        "modules": len(workload.places),
        "weight_bytes": workload.weight_bytes,
        "dtypes": sorted({place.ref.dtype.value for place in workload.places}),
        "ranks": list(workload.ranks),
        "copies": copies,
        "repeats": repeats,
    }
    return Scalars("workload", "Workload", _WORKLOAD, values)


def limits_scalars(bandwidths: Sequence[float], weight_bytes: int) -> Scalars:
    """What no strategy that touches every weight can beat; the least sure of several copies is the slowest."""
    bandwidth = min(bandwidths, default=None)
    values = {
        "copy_bandwidth_bytes_per_second": None if bandwidth is None else round(bandwidth),
        "copy_seconds": None if bandwidth is None else 2 * weight_bytes / bandwidth,
    }
    return Scalars("limits", "Limits", _LIMITS, values)


def timed_cells(spread: Spread, bytes_moved: int, weight_bytes: int, bandwidth: float) -> dict[str, Any]:
    """Cells that follow from the times."""
    return {
        **spread.to_row(),
        "times_copy": spread.p50 * bandwidth / (2 * weight_bytes),
        "bytes_moved": bytes_moved,
        "fraction_of_copy_bandwidth": bytes_moved / spread.p50 / bandwidth if spread.p50 else None,
    }
