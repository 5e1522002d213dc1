"""Asks one question at a time, the newest one; an answer that comes too late is never shown.

What is being worked on is given a moment to end by itself when it is no longer wanted, since to end the computing
process and start another takes longer than most answers; then it is cancelled.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.domain.report import Report
    from lora_lab.jobs import Job, JobEvent
    from lora_lab.jobs.model import Call
    from lora_lab.tui.detail.feed import JobDesk

_MOST_KNOWN: Final = 32


class Question(NamedTuple):
    """A method of Session with its arguments."""

    call: Call
    arguments: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Equal for equal questions."""
        return json.dumps([self.call, self.arguments], sort_keys=True, default=str)


class Asker:
    """One line of questions, of which the last is the one that counts.

    Parameters
    ----------
    title : of its jobs
    priority : of its jobs
    """

    def __init__(self, title: str, priority: int) -> None:
        self._title, self._priority = title, priority
        self._known: OrderedDict[str, Report] = OrderedDict()
        self._wanted: Question | None = None
        self._job: Job | None = None
        self._asked: Question | None = None  # of the job
        self._rows: list[Mapping[str, Any]] = []  # of the job, as far as they have come
        self.reason = self.hint = ""  # why the question that counts has no answer

    @property
    def report(self) -> Report | None:
        """The answer to the question that counts, once it is there."""
        return self._known.get(self._wanted.key) if self._wanted is not None else None

    @property
    def job(self) -> Job | None:
        """What works on the question that counts."""
        return self._job if self._asked == self._wanted else None

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """What has come of an answer that is not whole."""
        return self._rows if self.job is not None else []

    @property
    def is_waiting(self) -> bool:
        """Whether an answer to the question that counts will come."""
        return self._wanted is not None and self.report is None and not self.reason

    @property
    def is_obsolete(self) -> bool:
        """Whether something is being worked on that nobody wants any more."""
        return self._job is not None and self._asked != self._wanted

    def ask(self, question: Question | None, desk: JobDesk) -> None:
        """Let this be the question that counts; None takes it back."""
        if question == self._wanted and not self.reason:
            return
        self._wanted, self.reason, self.hint = question, "", ""
        if self._job is not None and self._job.state == "queued" and self.is_obsolete:
            self._drop(desk)
        self._go_on(desk)

    def expire(self, desk: JobDesk) -> None:
        """End what is worked on and not wanted."""
        if self.is_obsolete:
            self._drop(desk)
            self._go_on(desk)

    def forget(self, desk: JobDesk) -> None:
        """Ask everything anew."""
        self._known.clear()
        wanted, self._wanted = self._wanted, None
        self._drop(desk)
        self.ask(wanted, desk)

    def _drop(self, desk: JobDesk) -> None:
        job, self._job, self._asked = self._job, None, None
        if job is not None:
            desk.drop(job)

    def _go_on(self, desk: JobDesk) -> None:
        if self._wanted is None or self.report is not None or self._job is not None:
            return
        self._asked, self._rows = self._wanted, []
        self._job = desk.submit(
            self._wanted.call,
            dict(self._wanted.arguments),
            title=self._title,
            group=self._title,
            priority=self._priority,
        )

    def take(self, event: JobEvent, desk: JobDesk) -> bool:
        """Take in an event; whether it changes what is known of the question that counts."""
        if self._job is None or event.job is not self._job:
            return False
        if event.kind == "rows":
            self._rows.extend(event.rows)
        if event.kind not in ("result", "failed", "cancelled"):
            return not self.is_obsolete
        asked, self._job, self._asked = self._asked, None, None
        desk.over(event.job)
        if event.kind == "result" and event.report is not None and asked is not None:
            self._known[asked.key] = event.report
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        if asked != self._wanted:
            self._go_on(desk)
            return self.report is not None
        if event.kind == "failed":
            self.reason, self.hint = event.job.error or "It could not be computed.", event.job.hint or ""
        elif event.kind == "cancelled":
            self.reason, self.hint = "It was cancelled.", "r asks again."
        return True
