"""What is known of the jobs of this run, for the header and the list of jobs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lora_lab.jobs import Job, JobEvent

#: Group prefix of jobs that fill what is on screen: nobody asked for them, nothing is lost with them.
BACKGROUND: Final = "background:"

#: Calls that make adapters.
MAKES: Final = frozenset({"combine", "resize", "extract"})
#: Calls whose report is worth a screen.
CHANGES: Final = frozenset({"merge", "unmerge", "swap", "verify", "push"}) | MAKES
#: Calls whose units are bytes; of the others they are modules.
IN_BYTES: Final = (CHANGES | {"pull"}) - {"combine", "resize"}

#: What a push that can no longer be taken back says of itself.
COMMITTING: Final = "committing"

_ACTIVE: Final = frozenset({"queued", "running"})


class JobList:
    """Jobs in the order they were submitted."""

    def __init__(self) -> None:
        self._jobs: dict[object, Job] = {}
        self._begun: dict[object, float] = {}

    def add(self, job: Job) -> None:
        """Know a job before its first event."""
        self._jobs[job.id] = job

    def note(self, event: JobEvent) -> None:
        """Take in an event; a background job that is over is forgotten unless it failed."""
        job = event.job
        if event.kind == "gone":
            return
        self._jobs[job.id] = job
        if event.kind == "started":
            self._begun[job.id] = time.monotonic()
        if job.group.startswith(BACKGROUND) and job.state in ("done", "cancelled"):
            self.forget(job)

    def forget(self, job: Job) -> None:
        """No longer list `job`."""
        self._jobs.pop(job.id, None)
        self._begun.pop(job.id, None)

    @property
    def jobs(self) -> list[Job]:
        """All of them, newest first."""
        return list(self._jobs.values())[::-1]

    def active(self) -> list[Job]:
        """Queued or running."""
        return [job for job in self._jobs.values() if job.state in _ACTIVE]

    def asked_for(self) -> list[Job]:
        """Active ones that are more than the filling of a screen."""
        return [job for job in self.asked() if job.state in _ACTIVE]

    def changes(self) -> list[Job]:
        """Those that somebody asked for and that write, verify or send something."""
        return [job for job in self.asked() if job.request.call in CHANGES]

    def asked(self) -> list[Job]:
        """All that are more than the filling of a screen."""
        return [job for job in self._jobs.values() if not job.group.startswith(BACKGROUND)]

    def eta_seconds(self, job: Job) -> float | None:
        """Time left if it goes on as it went; None when that cannot be known."""
        begun = self._begun.get(job.id)
        if job.state != "running" or begun is None or not job.done or not job.total:
            return None
        return (time.monotonic() - begun) / job.done * (job.total - job.done)

    def rate(self, job: Job) -> float | None:
        """Units a second since it began; None when that cannot be known."""
        begun = self._begun.get(job.id)
        if begun is None or not job.done:
            return None
        end = job.finished_seconds if job.finished_seconds is not None else time.monotonic()
        return job.done / max(end - begun, 1e-9)

    def status(self) -> str:
        """A few words: how many are active, and how far the running one is."""
        active = self.active()
        if not active:
            return ""
        running = next((job for job in active if job.state == "running"), None)
        count = f"{len(active)} job" if len(active) == 1 else f"{len(active)} jobs"
        if running is None or not running.total:
            return f"{count} …"
        return f"{count} ▶ {100 * running.done // running.total} %"
