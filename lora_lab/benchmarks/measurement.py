"""One benchmark, from the first look at the machine to the Report with everything that it takes to trust it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lora_lab.benchmarks.clock import Clock
from lora_lab.benchmarks.columns import RUN
from lora_lab.benchmarks.disturbance import Watch, findings_of
from lora_lab.benchmarks.environment import environment_of, environment_scalars
from lora_lab.benchmarks.spread import SURE, spread_of
from lora_lab.domain.figures import plural
from lora_lab.domain.report import Finding, Report, Scalars

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_lab.benchmarks.rounds import Rounds
    from lora_lab.benchmarks.spread import Spread
    from lora_lab.domain.report import Table


class Measurement:
    """Begins when it is made: what the machine is and does is looked at before anything is loaded.

    Parameters
    ----------
    device : resolved: cpu, cuda:N, mps

    Examples
    --------
    >>> from lora_lab.benchmarks.rounds import Contestant, Rounds
    >>> measurement = Measurement("cpu")
    >>> rounds = Rounds([Contestant("sum", lambda run: sum(range(1000)))], measurement.clock)
    >>> rounds.measure(3)
    >>> report = measurement.report("bench sum", "Sum", tables=(), rounds=[rounds])
    >>> report.to_json()["run"]["worked_seconds"] == rounds.worked_seconds
    True
    """

    def __init__(self, device: str) -> None:
        self.started = time.perf_counter()
        self.device = device
        self.clock = Clock(device)
        self.once_seconds = 0.0
        self.environment = environment_of(device)
        self.watch = Watch()

    def once(self, work: Callable[[], object]) -> float:
        """Seconds of what is done a single time and told as such, such as preparing; part of the measured work."""
        seconds = self.clock.seconds(work)
        self.once_seconds += seconds
        return seconds

    def report(
        self,
        command: str,
        title: str,
        *,
        tables: Sequence[Table],
        rounds: Sequence[Rounds],
        scalars: Sequence[Scalars] = (),
        findings: Sequence[Finding] = (),
        parameters: Mapping[str, Any] | None = None,
    ) -> Report:
        """Put together what was measured, where, how much the measuring itself took, and how quiet it was.

        Parameters
        ----------
        rounds : all that was run
        scalars : shown between the environment and the account of the run
        """
        spreads = spreads_of(rounds)
        disturbance = self.watch.disturbance()
        worked = self.once_seconds + sum(one.worked_seconds for one in rounds)
        total = time.perf_counter() - self.started
        run = {
            "worked_seconds": worked,
            "total_seconds": total,
            "overhead": total / worked - 1.0 if worked else None,
            "others_fraction": disturbance.others,
            "stolen_fraction": disturbance.stolen,
        }
        noise = {name: spread.noise for name, spread in spreads.items()}
        fewest = min((spread.count for spread in spreads.values()), default=SURE)
        return Report(
            command,
            title,
            tables=tuple(tables),
            scalars=(environment_scalars(self.environment), *scalars, Scalars("run", "Run", RUN, run)),
            findings=(*findings, *_few(fewest), *findings_of(disturbance, noise)),
            parameters=dict(parameters or {}),
        )


def _few(fewest: int) -> tuple[Finding, ...]:
    if fewest >= SURE:
        return ()
    return (
        Finding(
            "few_runs",
            f"With {plural(fewest, 'run')} intervals reach from the fastest to the slowest, and hold the median less "
            f"often than the 95 % that {SURE} runs give; --repeats says how many.",
        ),
    )


def spreads_of(rounds: Sequence[Rounds]) -> dict[str, Spread]:
    """Spread of every contestant that was measured."""
    return {name: spread_of(samples) for one in rounds for name, samples in one.samples.items() if samples}
