"""Asks for the spectra of the rows one sees, nearest to the cursor first, and takes back what is no longer wanted."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from lora_lab.tui.job_list import BACKGROUND

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.jobs import Job, JobEvent, JobManager
    from lora_lab.tui.job_list import JobList

#: More than this many are never queued: the rest follows as these come back.
_MOST_QUEUED: Final = 48
_GROUP: Final = f"{BACKGROUND}library:"


def nearest(
    keys: Sequence[str], visible: Sequence[str], cursor: str | None, is_waiting: Callable[[str], bool]
) -> list[str]:
    """Choose what to measure: the row under the cursor, what is visible, what follows; the rest when these are done."""
    first = ([cursor] if cursor is not None and cursor in visible else []) + list(visible)
    end = keys.index(visible[-1]) + 1 if visible else 0
    near = [key for key in dict.fromkeys([*first, *keys[end : end + _MOST_QUEUED]]) if is_waiting(key)]
    rest = itertools.islice(filter(is_waiting, keys), _MOST_QUEUED)
    return near[:_MOST_QUEUED] or list(rest)


class Measuring:
    """The queue of spectra that fill the table.

    Parameters
    ----------
    jobs : whoever runs them
    job_list : whoever lists them
    """

    def __init__(self, jobs: JobManager, job_list: JobList) -> None:
        self._jobs = jobs
        self._job_list = job_list
        self._queued: dict[str, Job] = {}  # by path

    @property
    def paths(self) -> tuple[str, ...]:
        """What has been asked for and has not come."""
        return tuple(self._queued)

    def want(self, paths: Sequence[tuple[str, str]]) -> None:
        """Ask for these and no others, the first one first.

        Parameters
        ----------
        paths : path and name of each adapter
        """
        wanted = paths[:_MOST_QUEUED]
        keep = {path for path, _ in wanted}
        for path, job in list(self._queued.items()):
            # What is being computed is let go on: it is nearly there, and its result is kept.
            if path not in keep and job.state == "queued":
                self.drop(path)
        for place, (path, name) in enumerate(wanted):
            self._ask(path, name, priority=_MOST_QUEUED - place)

    def _ask(self, path: str, name: str, *, priority: int) -> None:
        from lora_lab.jobs import JobRequest

        job = self._queued.get(path)
        if job is None:
            job = self._jobs.submit(
                JobRequest("spectrum", {"locator": path}),
                title=f"spectrum {name}",
                group=_GROUP + path,
                priority=priority,
            )
            self._queued[path] = job
            self._job_list.add(job)
        elif job.priority != priority:
            self._jobs.reprioritise(job, priority)

    def drop(self, path: str) -> None:
        """Take one back."""
        job = self._queued.pop(path, None)
        if job is not None:
            self._jobs.cancel(job)
            self._job_list.forget(job)

    def drop_all(self) -> None:
        """Take everything back."""
        for path in self.paths:
            self.drop(path)

    def path_of(self, event: JobEvent) -> str | None:
        """Path of the row an event is about, when it is the job that is waited for."""
        group = event.job.group
        if not group.startswith(_GROUP):
            return None
        path = group.removeprefix(_GROUP)
        known = self._queued.get(path)
        return path if known is not None and known.id == event.job.id else None

    def came(self, path: str) -> None:
        """No longer wait for this one."""
        self._queued.pop(path, None)
