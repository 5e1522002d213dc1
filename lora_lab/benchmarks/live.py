"""A benchmark while it runs: the distribution of what has been timed so far, from its rows of ``samples``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_lab.benchmarks.copying import COPY
from lora_lab.benchmarks.disturbance import MOST_NOISE
from lora_lab.benchmarks.spread import histogram, spread_of
from lora_lab.domain.report import Column, ColumnKind, Finding, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SAMPLES: Final = "samples"
_BINS: Final = 12
_COLUMNS: Final = (
    Column("id", "What", ColumnKind.TEXT),
    Column("p50_milliseconds", "p50 ms", unit="ms", formula="median of the runs so far"),
    Column("p95_milliseconds", "p95 ms", unit="ms"),
    Column("runs", "n", ColumnKind.INTEGER),
    Column("ratio", "× fastest", formula="p50 / least p50"),
    Column("histogram", "Runs by time", ColumnKind.TEXT, formula="from the fastest to the slowest run of the row"),
    Column("noise", "Noise", formula="(x(¾) − x(¼))/p50"),
)


class Live:
    """Takes in samples and says how they are distributed.

    Examples
    --------
    >>> live = Live()
    >>> live.take([{"id": "fused", "seconds": 0.25}, {"id": "undo", "seconds": 0.5}, {"id": "fused", "seconds": 0.25}])
    >>> [(row["id"], row["p50_milliseconds"], row["runs"], row["ratio"]) for row in live.table().rows]
    [('fused', 250.0, 2, 1.0), ('undo', 500.0, 1, 2.0)]
    """

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}

    def take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in rows of the table ``samples``."""
        for row in rows:
            self.samples.setdefault(str(row["id"]), []).append(float(row["seconds"]))

    def table(self) -> Table:
        """One row for each contestant, in the order in which they first came in.

        The plain copy has none: it moves so many bytes of its own that its time compares with nobody's.
        """
        spreads = {name: spread_of(samples) for name, samples in self.samples.items() if name != COPY}
        fastest = min((spread.p50 for spread in spreads.values()), default=0.0)
        rows = tuple(
            {
                "id": name,
                "p50_milliseconds": 1e3 * spread.p50,
                "p95_milliseconds": 1e3 * spread.p95,
                "runs": spread.count,
                "ratio": spread.p50 / fastest if fastest else None,
                "histogram": histogram(self.samples[name], _BINS),
                "noise": spread.noise,
            }
            for name, spread in spreads.items()
        )
        return Table("distribution", "Distribution", _COLUMNS, rows, key="id")

    def findings(self) -> tuple[Finding, ...]:
        """A warning where the runs so far spread over too much."""
        noise = {name: spread_of(samples).noise for name, samples in self.samples.items()}
        worst = max(noise, key=noise.__getitem__, default=None)
        if worst is None or noise[worst] <= MOST_NOISE:
            return ()
        return (Finding("noisy", f"Noisy: half of the runs of {worst} spread over {noise[worst]:.0%} of the median."),)
