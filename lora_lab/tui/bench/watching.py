"""The benchmark that was begun last, whichever screen is shown meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.benchmarks.live import SAMPLES, Live

if TYPE_CHECKING:
    from lora_lab.domain.report import Report
    from lora_lab.jobs import Job, JobEvent


class Watched:
    """Its job, what has been timed so far, and its result.

    job : None before the first one, and where the result is an earlier one's
    """

    def __init__(self) -> None:
        self.job: Job | None = None
        self.live = Live()
        self.report: Report | None = None

    @property
    def is_running(self) -> bool:
        """Whether it goes on, or waits for its turn."""
        return self.job is not None and not self.job.is_over

    def begin(self, job: Job) -> None:
        """Watch `job` from now on."""
        self.job, self.live, self.report = job, Live(), None

    def show(self, report: Report) -> None:
        """Take the result of an earlier one."""
        self.job, self.live, self.report = None, Live(), report

    def note(self, event: JobEvent) -> None:
        """Take in what the job tells."""
        if self.job is None or event.job is not self.job:
            return
        if event.kind == "rows" and event.table == SAMPLES:
            self.live.take(event.rows)
        elif event.kind == "result":
            self.report = event.report
