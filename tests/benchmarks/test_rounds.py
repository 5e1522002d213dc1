"""Contestants take turns, are told which run it is, and stop when nobody wants them any more."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from lora_lab.benchmarks.clock import Clock
from lora_lab.benchmarks.measurement import Measurement
from lora_lab.benchmarks.rounds import Contestant, Rounds
from lora_lab.errors import CancelledError


class Listener:
    """Keeps what it is told; cancels after so many runs."""

    def __init__(self, until: int = 1000) -> None:
        self.until = until
        self.told: list[tuple[int, int]] = []
        self.samples: list[Mapping[str, Any]] = []

    def advance(self, done: int, total: int, what: str = "") -> None:
        self.told.append((done, total))

    def rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        assert table == "samples"
        self.samples.extend(rows)

    def is_cancelled(self) -> bool:
        return len(self.told) >= self.until


def noted(log: list[tuple[str, int]], *names: str) -> list[Contestant]:
    """Contestants that write down when they run."""
    return [Contestant(name, lambda run, name=name: log.append((name, run))) for name in names]


def test_every_round_has_everyone_once_in_orders_that_differ() -> None:
    """Runs are numbered through, and no order is the only one."""
    log: list[tuple[str, int]] = []
    listener = Listener()
    rounds = Rounds(noted(log, "a", "b", "c"), Clock("cpu"), observer=listener)
    rounds.warm_up(2)
    rounds.measure(8)
    turns = [log[place : place + 3] for place in range(0, len(log), 3)]
    assert [{run for _, run in turn} for turn in turns] == [{number} for number in range(10)]
    assert all(sorted(name for name, _ in turn) == ["a", "b", "c"] for turn in turns)
    assert len({tuple(name for name, _ in turn) for turn in turns[2:]}) > 1
    assert {name: len(samples) for name, samples in rounds.samples.items()} == {"a": 8, "b": 8, "c": 8}
    assert listener.told[-1] == (30, 30)
    assert len(listener.samples) == 24
    assert rounds.worked_seconds >= sum(map(sum, rounds.samples.values()))


def test_the_seed_decides_the_orders() -> None:
    """The same seed gives the same orders, another one others."""

    def orders(seed: int) -> list[tuple[str, int]]:
        log: list[tuple[str, int]] = []
        Rounds(noted(log, *"abcde"), Clock("cpu"), seed=seed).measure(5)
        return log

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)


def test_preparing_is_not_timed() -> None:
    """What is done before a run does not count."""
    import time

    rounds = Rounds([Contestant("a", lambda run: None, before=lambda run: time.sleep(0.02))], Clock("cpu"))
    rounds.measure(3)
    assert max(rounds.samples["a"]) < 0.02


def test_cancelling_stops_before_the_next_run() -> None:
    """Nothing more runs once the observer says so."""
    log: list[tuple[str, int]] = []
    rounds = Rounds(noted(log, "a", "b"), Clock("cpu"), observer=Listener(until=3))
    with pytest.raises(CancelledError):
        rounds.measure(50)
    assert len(log) == 3


@pytest.mark.parametrize("is_on", [True, False])
def test_the_collector_is_off_meanwhile_and_as_it_was_afterwards(is_on: bool) -> None:
    """Also when work raises."""
    seen = []

    def work(run: int) -> None:
        seen.append(gc.isenabled())
        raise ZeroDivisionError

    (gc.enable if is_on else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError):
            Rounds([Contestant("a", work)], Clock("cpu")).measure(1)
        assert (seen, gc.isenabled()) == ([False], is_on)
    finally:
        gc.enable()


def test_a_report_says_where_and_how_much_beyond_the_work() -> None:
    """Environment, overhead and noise come with every result."""
    import time

    measurement = Measurement("cpu")
    rounds = Rounds([Contestant("nap", lambda run: time.sleep(0.02))], measurement.clock)
    rounds.warm_up()
    rounds.measure(4)
    document = measurement.report("bench nap", "Naps", tables=(), rounds=[rounds]).to_json()
    run, environment = document["run"], document["environment"]
    assert run["worked_seconds"] >= 5 * 0.02
    assert run["overhead"] == pytest.approx(run["total_seconds"] / run["worked_seconds"] - 1.0)
    assert environment["device"] == "cpu"
    assert environment["threads"] >= 1
    assert {"cpu", "torch", "lora_lab", "commit", "load", "governor", "measured_at"} <= set(environment)


def test_loud_runs_are_told() -> None:
    """Runs that spread widely are named."""
    import time

    measurement = Measurement("cpu")
    loud = Contestant("loud", lambda run: time.sleep(0.001 + 0.02 * (run % 2)))
    rounds = Rounds([loud], measurement.clock)
    rounds.measure(8)
    findings = measurement.report("bench loud", "Loud", tables=(), rounds=[rounds]).findings
    assert [finding.code for finding in findings] == ["noisy_machine"]
    assert "loud" in findings[0].message


@pytest.mark.parametrize(("repeats", "is_few"), [(5, True), (6, False)])
def test_runs_too_few_for_an_interval_are_told(repeats: int, is_few: bool) -> None:
    """The smallest and the largest of five hold the median with 94 %, of six with 97 %."""
    measurement = Measurement("cpu")
    rounds = Rounds([Contestant("a", lambda run: None)], measurement.clock)
    rounds.measure(repeats)
    findings = measurement.report("bench a", "A", tables=(), rounds=[rounds]).findings
    assert ("few_runs" in {finding.code for finding in findings}) == is_few
