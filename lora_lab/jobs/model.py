"""What a job is, seen from outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.report import Report


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


Call = Literal[
    "spectrum", "analyze", "inspect", "merge", "unmerge", "swap", "verify",
    "combine", "sweep", "compare_methods", "resize", "extract", "push", "pull", "bench_swap",
    "bench_latency", "bench_mixed",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A method of Session that returns a Report, and its keyword arguments, which JSON can hold."""

    call: Call
    arguments: Mapping[str, Any]

    @property
    def is_measurement(self) -> bool:
        """Whether how long it takes is the result."""
        return self.call.startswith("bench_")


@dataclass(slots=True, eq=False)
class Job:
    """One piece of long work."""

    id: int
    request: JobRequest
    title: str
    group: str = ""
    priority: int = 0  # higher goes first
    state: JobState = JobState.QUEUED
    done: int = 0
    total: int = 0
    what: str = ""
    error: str | None = None
    hint: str | None = None
    started_seconds: float | None = None  # of the monotonic clock
    finished_seconds: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something happened to a job; ``gone`` is that the process which did a cancelled one has ended."""

    job: Job
    kind: Literal["started", "progress", "rows", "result", "failed", "cancelled", "gone"]
    table: str = ""
    rows: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    report: Report | None = None
