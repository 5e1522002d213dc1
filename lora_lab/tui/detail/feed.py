"""What arrives of one adapter: rows as a job tells of them, then the whole report, or the reason why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_lab.tui.job_list import BACKGROUND

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.report import Report
    from lora_lab.jobs import Job, JobEvent, JobManager
    from lora_lab.jobs.model import Call
    from lora_lab.tui.job_list import JobList

_TABLE: Final = "modules"
#: From this many modules on, those in sight are asked for in a job of their own, ahead of the rest.
MANY_MODULES: Final = 256
_FIRST_PRIORITY: Final = 200
_REST_PRIORITY: Final = 150


class JobDesk:
    """Submits jobs for one screen and takes them all back when it closes."""

    def __init__(self, jobs: JobManager, job_list: JobList) -> None:
        self._jobs = jobs
        self._job_list = job_list
        self._mine: dict[Any, Job] = {}

    def submit(self, call: Call, arguments: dict[str, Any], *, title: str, group: str, priority: int) -> Job:
        """Ask for ``Session.<call>(**arguments)``."""
        from lora_lab.jobs import JobRequest

        job = self._jobs.submit(
            JobRequest(call, arguments), title=title, group=f"{BACKGROUND}detail:{group}", priority=priority
        )
        self._mine[job.id] = job
        self._job_list.add(job)
        return job

    def over(self, job: Job) -> None:
        """No longer answer for a job that has ended."""
        self._mine.pop(job.id, None)

    def drop(self, job: Job) -> None:
        """Take one back."""
        if self._mine.pop(job.id, None) is not None:
            self._jobs.cancel(job)
            self._job_list.forget(job)

    def drop_all(self) -> None:
        """Take everything back."""
        for job in list(self._mine.values()):
            self.drop(job)


class SpectrumFeed:
    """The spectrum of one adapter, as far as it is known.

    Parameters
    ----------
    locator : of the adapter
    name : what it is called on screen
    """

    def __init__(self, locator: str, name: str) -> None:
        self.locator = locator
        self.name = name
        self.rows: dict[str, Mapping[str, Any]] = {}
        self.report: Report | None = None
        self.reason = ""  # why there will be no report
        self.hint = ""
        self._jobs: list[Job] = []

    @property
    def is_waiting(self) -> bool:
        """Whether more may come."""
        return bool(self._jobs)

    def begin(self, desk: JobDesk, first: Sequence[str] = ()) -> None:
        """Ask for everything, and before that for the modules of `first`."""
        self.stop(desk)
        self.report, self.reason, self.hint = None, "", ""
        if first:
            arguments = {"locator": self.locator, "modules": [literal_glob(module) for module in first]}
            self._jobs.append(self._submit(desk, arguments, "first", _FIRST_PRIORITY))
        self._jobs.append(self._submit(desk, {"locator": self.locator}, "all", _REST_PRIORITY))

    def _submit(self, desk: JobDesk, arguments: dict[str, Any], part: str, priority: int) -> Job:
        title = f"spectrum {self.name}"
        return desk.submit("spectrum", arguments, title=title, group=f"{part}:{self.locator}", priority=priority)

    def stop(self, desk: JobDesk) -> None:
        """Take back what is not finished."""
        for job in self._jobs:
            desk.drop(job)
        self._jobs = []

    def take(self, event: JobEvent, desk: JobDesk) -> bool:
        """Take in an event of one of our own jobs; False when it is none of them, whatever it is about."""
        mine = next((job for job in self._jobs if job.id == event.job.id), None)
        if mine is None:
            return False
        if event.kind == "rows" and event.table in ("", _TABLE):
            self._add(event.rows)
        elif event.kind == "result" and event.report is not None:
            self._add(event.report.table(_TABLE).rows)
            if mine is self._jobs[-1]:
                self.report = event.report
        elif event.kind == "failed" and mine is self._jobs[-1]:
            self.reason = event.job.error or "The spectrum could not be computed."
            self.hint = event.job.hint or ""
        elif event.kind == "cancelled" and mine is self._jobs[-1]:
            self.reason, self.hint = "The spectrum was cancelled.", "r computes it again."
        if event.kind in ("result", "failed", "cancelled"):
            # The last of the list is the job for the whole; it ends the waiting.
            self._jobs = [] if mine is self._jobs[-1] else [job for job in self._jobs if job is not mine]
            desk.over(mine)
        return True

    def _add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows.update((row["module"], row) for row in rows)


def literal_glob(module: str) -> str:
    """A glob that matches `module` and nothing else of that length.

    Examples
    --------
    >>> literal_glob("h.0.[x]*")
    'h.0.[[]x][*]'
    """
    return "".join(f"[{character}]" if character in "*?[" else character for character in module)
