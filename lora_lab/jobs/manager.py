"""One warm child process, a queue in front of it, and events on the event loop.

The child does one job after another. Cancelling the one that runs ends the child with whatever it has started itself,
and starts a fresh one: SIGTERM, at which it tidies up between two pieces of its work, then SIGKILL, because numerical
libraries cannot be interrupted from inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from typing import IO, TYPE_CHECKING, Any, Final

from lora_lab.domain.wire import report_from_wire
from lora_lab.jobs.model import Job, JobEvent, JobRequest, JobState
from lora_lab.safetext import safe_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LINE_BYTES: Final = 1 << 30  # a report of many modules is one line
_TERMINATION_SECONDS: Final = 0.2
# Time to take away what is half written.
_TIDYING_SECONDS: Final = 0.8
_WRITING: Final = frozenset({"merge", "unmerge", "swap", "combine", "sweep", "resize", "extract", "push"})
_SHOWN_STDERR: Final = 300
_KILL: Final = getattr(signal, "SIGKILL", signal.SIGTERM)


class JobManager:
    """Runs jobs for an application on asyncio's loop.

    Parameters
    ----------
    on_event : called on the loop, for every event of every job
    session_options : keyword arguments of the child's Session, JSON-able
    """

    def __init__(self, on_event: Callable[[JobEvent], None], *, session_options: Mapping[str, Any]) -> None:
        self._on_event = on_event
        self._options = dict(session_options)
        self._ids = itertools.count(1)
        self._queue: list[Job] = []
        self._running: Job | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._is_measuring = False  # what the child was started for
        self._stderr: IO[bytes] | None = None
        self._wake = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def start(self) -> None:
        """Start the child and the loop that feeds it; returns at once."""
        if self._loop_task is None and not self._is_closed:
            self._loop_task = asyncio.create_task(self._feed())

    def submit(self, request: JobRequest, *, title: str, group: str = "", priority: int = 0) -> Job:
        """Queue a job; an older one of the same group, when it has a name, is cancelled."""
        if group:
            for older in [*self._queue, *([self._running] if self._running else [])]:
                if older.group == group:
                    self.cancel(older)
        job = Job(next(self._ids), request, title, group, priority)
        self._queue.append(job)
        self._wake.set()
        return job

    def cancel(self, job: Job) -> None:
        """Take a job off the queue, or end the child that does it."""
        if job.is_over:
            return
        if job in self._queue:
            self._queue.remove(job)
        self._finish(job, JobState.CANCELLED, "cancelled")
        if job is self._running and self._child is not None:
            _end(self._child, signal.SIGTERM)
            seconds = _TIDYING_SECONDS if job.request.call in _WRITING else _TERMINATION_SECONDS
            asyncio.get_running_loop().call_later(seconds, _end, self._child, _KILL)

    def reprioritise(self, job: Job, priority: int) -> None:
        """Move a waiting job forward or back."""
        job.priority = priority

    async def shutdown(self) -> None:
        """End everything at once; nothing is left behind."""
        self._is_closed = True
        self._queue.clear()
        child = self._child
        if child is not None:
            _end(child, _KILL)
        if self._loop_task is not None:
            self._loop_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop_task
        if child is not None:
            await child.wait()

    async def _feed(self) -> None:
        """Give the child one job after another, keeping one warm between them."""
        while not self._is_closed:
            job = self._foremost()
            try:
                child = await self._ready_child(is_measuring=job is not None and job.request.is_measurement)
                obstacle = ""
            except OSError as error:  # no memory, no process, no interpreter
                child, obstacle = None, error.strerror or type(error).__name__
            if job is not self._foremost():  # others came, or went, while the child was started
                continue
            if job is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            self._queue.remove(job)
            if child is None:
                job.error = f"No process could be started for this: {obstacle.lower()}."
                job.hint = "Close other programs, then run it again."
                self._finish(job, JobState.FAILED, "failed")
                continue
            self._running = job
            try:
                await self._run(child, job)
            except Exception as error:  # what came through the pipe was no event
                _end(child, _KILL)
                await child.wait()
                if not job.is_over:
                    job.error = f"The computing process could not be understood: {type(error).__name__}."
                    job.hint = self._last_words()
                    self._finish(job, JobState.FAILED, "failed")
            finally:
                self._running = None

    def _foremost(self) -> Job | None:
        return max(self._queue, key=lambda queued: (queued.priority, -queued.id), default=None)

    async def _ready_child(self, *, is_measuring: bool) -> asyncio.subprocess.Process:
        if self._child is not None and self._child.returncode is None and self._is_measuring != is_measuring:
            _end(self._child, _KILL)
            await self._child.wait()
        if self._child is None or self._child.returncode is not None:
            self._is_measuring = is_measuring
            self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads would block the child
            # A computation beside a screen that must stay quick yields to it, and small decompositions gain nothing
            # from threads; what is measured has every thread, as a command has.
            environment = dict(os.environ) if is_measuring else {"OMP_NUM_THREADS": "1", **os.environ}
            manner = ("measuring",) if is_measuring else ()
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "lora_lab.jobs.worker", json.dumps(self._options), *manner),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=self._stderr,
                limit=_LINE_BYTES,
                env=environment,
                start_new_session=True,  # Ctrl-C in the terminal is the application's to handle
            )
        return self._child

    async def _run(self, child: asyncio.subprocess.Process, job: Job) -> None:
        job.state, job.started_seconds = JobState.RUNNING, time.monotonic()
        self._tell(JobEvent(job, "started"))
        assert child.stdin is not None
        assert child.stdout is not None
        request = {"id": job.id, "call": job.request.call, "arguments": dict(job.request.arguments)}
        with contextlib.suppress(ConnectionError):
            child.stdin.write(json.dumps(request).encode() + b"\n")
            await child.stdin.drain()
        while not job.is_over:
            line = await child.stdout.readline()
            if not line:
                await self._child_died(child, job)
                break
            event = json.loads(line)
            if event["id"] == job.id and not job.is_over:
                self._take(job, event)
        if job.state is JobState.CANCELLED:
            await child.wait()
            self._tell(JobEvent(job, "gone"))

    def _take(self, job: Job, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "progress":
            job.done, job.total, job.what = event["done"], event["total"], event["what"]
            self._tell(JobEvent(job, "progress"))
        elif kind == "rows":
            self._tell(JobEvent(job, "rows", table=event["table"], rows=event["rows"]))
        elif kind == "result":
            job.state, job.finished_seconds = JobState.DONE, time.monotonic()
            self._tell(JobEvent(job, "result", report=report_from_wire(event["report"])))
        elif kind == "cancelled":
            self._finish(job, JobState.CANCELLED, "cancelled")
        else:
            job.error, job.hint = event["error"], event["hint"]
            self._finish(job, JobState.FAILED, "failed")

    async def _child_died(self, child: asyncio.subprocess.Process, job: Job) -> None:
        """The child ended in the middle of a job: because it was cancelled, or by itself."""
        code = await child.wait()
        if not job.is_over:
            job.error = f"The computing process ended while it worked on this: {_ending(code)}."
            job.hint = "Out of memory is the usual reason; try fewer modules." if code == -_KILL else self._last_words()
            self._finish(job, JobState.FAILED, "failed")

    def _last_words(self) -> str:
        """The last line that the child wrote to stderr."""
        if self._stderr is None:
            return ""
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - _SHOWN_STDERR))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return safe_text(lines[-1]) if lines else ""

    def _finish(self, job: Job, state: JobState, kind: str) -> None:
        job.state, job.finished_seconds = state, time.monotonic()
        self._tell(JobEvent(job, kind))  # type: ignore[arg-type]

    def _tell(self, event: JobEvent) -> None:
        """Pass an event on; a listener that raises is the loop's to report, as with any callback, and stops no job."""
        try:
            self._on_event(event)
        except Exception as error:
            context = {"message": f"listening to job {event.job.id}: {event.kind}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


def _end(child: asyncio.subprocess.Process, how: signal.Signals) -> None:
    """Signal `child` and everything it started; nothing where it is over already."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, how)  # it leads a session of its own
        else:
            child.send_signal(how)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
