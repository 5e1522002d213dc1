"""Asks the analysis one question at a time: the newest one next, whatever was asked in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.domain.report import Report
    from lora_lab.jobs import Job, JobEvent
    from lora_lab.tui.detail.feed import JobDesk

_PRIORITY: Final = 300
News = Literal["", "report", "failed"]


class BudgetFeed:
    """The last answer, and the question that is under way.

    A question that still waits gives way to a newer one. One that is being answered is let go on, for it takes less
    time than to end the process and start another; its answer is passed over when a newer question is there.
    """

    def __init__(self) -> None:
        self.report: Report | None = None
        self.reason = ""
        self.hint = ""
        self._job: Job | None = None
        self._asked: Mapping[str, Any] | None = None  # of the job under way
        self._next: Mapping[str, Any] | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether an answer will come."""
        return self._job is not None

    def ask(self, arguments: Mapping[str, Any], desk: JobDesk) -> None:
        """Ask this instead of whatever was asked before."""
        if self._job is not None and self._asked == arguments:
            self._next = None
            return
        if self._job is not None and self._job.state == "running":
            self._next = arguments
            return
        if self._job is not None:
            desk.drop(self._job)
        self._submit(arguments, desk)

    def _submit(self, arguments: Mapping[str, Any], desk: JobDesk) -> None:
        self._asked, self._next = arguments, None
        self._job = None  # a listener must not take the cancellation of the old one for that of the new
        self._job = desk.submit("analyze", dict(arguments), title="budget", group="budget", priority=_PRIORITY)

    def take(self, event: JobEvent, desk: JobDesk) -> News:
        """Take in an event of our job, and ask what came up meanwhile."""
        if self._job is None or event.job.id != self._job.id or event.kind not in ("result", "failed", "cancelled"):
            return ""
        desk.over(event.job)
        self._job = None
        if self._next is not None:
            self._submit(self._next, desk)
            return ""
        if event.kind == "result" and event.report is not None:
            self.report, self.reason, self.hint = event.report, "", ""
            return "report"
        was_cancelled = event.kind == "cancelled"
        self.reason = "It was cancelled." if was_cancelled else event.job.error or "It could not be computed."
        self.hint = "r asks again." if was_cancelled else event.job.hint or ""
        return "failed"
