"""The child's side: events on a stream, few enough for a screen, and none is lost."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from lora_lab.domain.report import Report
from lora_lab.jobs import worker
from lora_lab.jobs.worker import Teller, serve


class Clock:
    """A time that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(worker, "time", clock)
    return clock


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class Counting:
    """A session whose one call tells of a thousand rows, a millisecond each."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def spectrum(self, *, observer: Teller) -> Report:
        for number in range(1000):
            self.clock.now += 0.001
            observer.rows("modules", [{"module": str(number)}])
            observer.advance(number + 1, 1000, str(number))
        return Report("spectrum", "Spectrum")


def test_rows_and_progress_come_in_few_events(clock: Clock) -> None:
    """A second of work makes about twenty events of each kind; every row arrives once, in order, before the result."""
    stream = io.StringIO()
    requests = [json.dumps({"id": 7, "call": "spectrum", "arguments": {}})]
    serve(Counting(clock), requests, Teller(stream))  # type: ignore[arg-type]
    told = events(stream)
    assert {event["id"] for event in told} == {7}
    rows = [row["module"] for event in told if event["kind"] == "rows" for row in event["rows"]]
    assert rows == [str(number) for number in range(1000)]
    assert told[-1]["kind"] == "result"
    progress = [event for event in told if event["kind"] == "progress"]
    assert (progress[-1]["done"], progress[-1]["total"]) == (1000, 1000)
    assert 15 <= len(progress) <= 25
    assert len(told) <= 75


def test_rows_of_a_job_that_failed_are_not_the_next_ones(clock: Clock) -> None:
    """What waits when a job fails is dropped with it."""

    class Failing(Counting):
        def inspect(self, *, observer: Teller) -> Report:
            observer.rows("modules", [{"module": "sent at once"}])
            observer.rows("modules", [{"module": "waits"}])
            raise RuntimeError("boom")

    stream = io.StringIO()
    calls = [{"id": 1, "call": "inspect", "arguments": {}}, {"id": 2, "call": "spectrum", "arguments": {}}]
    serve(Failing(clock), map(json.dumps, calls), Teller(stream))  # type: ignore[arg-type]
    told = events(stream)
    assert [event["kind"] for event in told if event["id"] == 1] == ["rows", "failed"]
    rows = [row["module"] for event in told if event["kind"] == "rows" and event["id"] == 2 for row in event["rows"]]
    assert rows == [str(number) for number in range(1000)]
