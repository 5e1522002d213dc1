"""Jobs run in a child: cancelled at once, contained when they fail, in the order of their priority."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from builders import MODULES, write_adapter

from lora_lab.domain.report import Report
from lora_lab.domain.wire import report_from_wire, report_to_wire
from lora_lab.jobs import Job, JobEvent, JobManager, JobRequest, JobState
from lora_lab.session import Session

SLOW = """
import time
from lora_lab import hookimpl
from lora_lab.domain.report import Report
from lora_lab.extension.contracts import Need
class Slow:
    id = "slow"; title = summary = reference = ""; parameters = (); subjects = (1, 1)
    takes_models = False; base = Need.NO
    def run(self, context):
        print("a stray word")
        context.observer.advance(1, 100, "begun")
        while True: time.sleep(0.01)
class Dies(Slow):
    id = "dies"
    def run(self, context):
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
class Raises(Slow):
    id = "raises"
    def run(self, context): raise RuntimeError("boom")
class Exits(Slow):
    id = "exits"
    def run(self, context): raise SystemExit(0)
class Deaf(Slow):
    id = "deaf"
    def run(self, context):
        import signal, subprocess, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        context.observer.advance(1, 100, str(own.pid))
        while True: time.sleep(0.01)
class Babbles(Slow):
    id = "babbles"
    def run(self, context):
        import os, stat
        for number in range(3, 16):
            try:
                if stat.S_ISFIFO(os.fstat(number).st_mode) or stat.S_ISSOCK(os.fstat(number).st_mode):
                    os.write(number, b"no event\\n")
            except OSError: pass
        while True: time.sleep(0.01)
@hookimpl
def lora_lab_analyses(): return [Slow(), Dies(), Raises(), Exits(), Deaf(), Babbles()]
"""


class Watcher:
    """Keeps every event, and lets a test wait for one."""

    def __init__(self) -> None:
        self.events: list[JobEvent] = []
        self._news = asyncio.Event()

    def __call__(self, event: JobEvent) -> None:
        self.events.append(event)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def kinds(self, job: Job) -> list[str]:
        return [event.kind for event in self.events if event.job is job]


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    return str(write_adapter(tmp_path / "adapter"))


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
async def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watcher: Watcher) -> AsyncIterator[JobManager]:
    """A manager whose children know three analyses that misbehave."""
    site = tmp_path / "site"
    info = site / "slow-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "slow_plugin.py").write_text(textwrap.dedent(SLOW))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lora_lab]\nslow = slow_plugin\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    manager = JobManager(watcher, session_options={})
    await manager.start()
    yield manager
    await manager.shutdown()


def analysis(name: str, adapter: str) -> JobRequest:
    return JobRequest("analyze", {"id": name, "locators": [adapter]})


async def test_a_spectrum_comes_as_rows_and_as_a_whole(manager: JobManager, watcher: Watcher, adapter: str) -> None:
    """The Report of a job is the Report of the session, column by column and digit by digit."""
    job = manager.submit(JobRequest("spectrum", {"locator": adapter}), title="spectrum")
    await watcher.until(lambda: job.is_over)
    assert job.state is JobState.DONE
    assert watcher.kinds(job)[0] == "started"
    rows = [row["module"] for event in watcher.events if event.kind == "rows" for row in event.rows]
    assert sorted(rows) == sorted(MODULES)
    assert watcher.events[-1].report == Session().spectrum(adapter)


async def test_cancelling_takes_less_than_a_second(manager: JobManager, watcher: Watcher, adapter: str) -> None:
    """A job that never ends is ended, and the next one runs."""
    endless = manager.submit(analysis("slow", adapter), title="slow")
    await watcher.until(lambda: "progress" in watcher.kinds(endless))
    assert (endless.done, endless.total, endless.what) == (1, 100, "begun")
    after = manager.submit(JobRequest("spectrum", {"locator": adapter}), title="after")
    start = time.monotonic()
    manager.cancel(endless)
    assert endless.state is JobState.CANCELLED
    assert time.monotonic() - start < 1
    await watcher.until(lambda: after.is_over)
    assert after.state is JobState.DONE
    assert watcher.kinds(endless)[-2:] == ["cancelled", "gone"]


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_a_child_that_is_deaf_is_ended_all_the_same(manager: JobManager, watcher: Watcher, adapter: str) -> None:
    """SIGTERM, then SIGKILL, to whatever the job has started; the next one runs."""
    deaf = manager.submit(analysis("deaf", adapter), title="deaf")
    await watcher.until(lambda: "progress" in watcher.kinds(deaf))
    child = manager._child
    assert child is not None
    manager.cancel(deaf)
    start = time.monotonic()
    assert await child.wait() == -signal.SIGKILL
    assert time.monotonic() - start < 1
    after = manager.submit(JobRequest("spectrum", {"locator": adapter}), title="after")
    await watcher.until(lambda: after.is_over)
    assert after.state is JobState.DONE
    assert not is_alive(int(deaf.what))


async def test_what_is_no_event_fails_one_job(manager: JobManager, watcher: Watcher, adapter: str) -> None:
    """A child that writes something else into the pipe is ended; the next job has a fresh one."""
    babbling = manager.submit(analysis("babbles", adapter), title="babbles")
    after = manager.submit(JobRequest("spectrum", {"locator": adapter}), title="after")
    await watcher.until(lambda: after.is_over)
    assert babbling.state is JobState.FAILED
    assert "could not be understood" in (babbling.error or "")
    assert after.state is JobState.DONE


async def test_a_listener_that_raises_stops_no_job(watcher: Watcher, adapter: str) -> None:
    """Its fault is reported by the loop; the job is done, and so is the next."""
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(str(context["exception"])))

    def listen(event: JobEvent) -> None:
        watcher(event)
        raise RuntimeError(event.kind)

    manager = JobManager(listen, session_options={})
    await manager.start()
    jobs = [manager.submit(JobRequest("spectrum", {"locator": adapter}), title="") for _ in range(2)]
    await watcher.until(lambda: all(job.is_over for job in jobs))
    await manager.shutdown()
    assert [job.state for job in jobs] == [JobState.DONE, JobState.DONE]
    assert reported == [event.kind for event in watcher.events]


ORPHAN = """
import asyncio, os, signal, sys
from lora_lab.jobs import JobManager, JobRequest
async def main():
    def listen(event):
        if event.kind == "progress":
            print(manager._child.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    manager = JobManager(listen, session_options={})
    await manager.start()
    manager.submit(JobRequest("analyze", {"id": "slow", "locators": [sys.argv[1]]}), title="slow")
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux lets one wait for a process of another")
async def test_a_child_does_not_outlive_the_application(manager: JobManager, adapter: str) -> None:
    """Killed in the middle of a job, the application leaves nothing behind that computes for nobody."""
    await manager.shutdown()  # its plugins are installed for this test, too
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", ORPHAN, adapter, stdout=asyncio.subprocess.PIPE
    )
    assert done.stdout is not None
    child = int(await done.stdout.readline())
    assert await done.wait() == -signal.SIGKILL
    ended = asyncio.Event()
    try:
        descriptor = os.pidfd_open(child)
    except ProcessLookupError:
        return
    asyncio.get_running_loop().add_reader(descriptor, ended.set)  # readable once the process is over
    async with asyncio.timeout(10):
        await ended.wait()
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)


async def test_a_child_that_dies_fails_one_job(manager: JobManager, watcher: Watcher, adapter: str) -> None:
    """The job that was running fails with the reason; the next one has a fresh child."""
    dying = manager.submit(analysis("dies", adapter), title="dies")
    after = manager.submit(JobRequest("spectrum", {"locator": adapter}), title="after")
    await watcher.until(lambda: after.is_over)
    assert dying.state is JobState.FAILED
    assert dying.error is not None
    assert signal.SIGKILL.name in dying.error
    assert after.state is JobState.DONE


async def test_errors_are_sentences(manager: JobManager, watcher: Watcher, adapter: str, tmp_path: Path) -> None:
    """A plugin that raises and a file that is not there each give their own sentence."""
    raising = manager.submit(analysis("raises", adapter), title="raises")
    leaving = manager.submit(analysis("exits", adapter), title="exits")
    missing = manager.submit(JobRequest("spectrum", {"locator": str(tmp_path / "none")}), title="missing")
    await watcher.until(lambda: raising.is_over and leaving.is_over and missing.is_over)
    assert "'exits' of the plugin 'slow' failed: SystemExit: 0" in (leaving.error or "")
    assert "'raises' of the plugin 'slow' failed: RuntimeError: boom" in (raising.error or "")
    assert "does not exist" in (missing.error or "")


async def test_the_highest_priority_goes_first(manager: JobManager, watcher: Watcher, adapter: str) -> None:
    """Waiting jobs run by priority, then by age; a priority can change while waiting."""
    request = JobRequest("spectrum", {"locator": adapter})
    jobs = [manager.submit(request, title=str(number), priority=number) for number in (0, 2, 1)]
    manager.reprioritise(jobs[0], 3)
    await watcher.until(lambda: all(job.is_over for job in jobs))
    started = [event.job for event in watcher.events if event.kind == "started"]
    assert started == [jobs[0], jobs[1], jobs[2]]


async def test_a_measurement_has_every_thread_and_no_other_manners(
    manager: JobManager, watcher: Watcher, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured beside the screen is what a command would measure; other work yields to the screen again."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    measure = JobRequest(
        "bench_swap",
        {
            "adapters": [str(samples / name) for name in ("banking77-r8-seed0", "snips-r8")],
            "base": str(samples / "base"),
            "strategies": ["fused"],
            "repeats": 1,
            "batches": [1],
            "modules": ["model.layers.0.self_attn.q_proj"],
            "save": False,
        },
    )
    own, plain = os.nice(0), JobRequest("spectrum", {"locator": str(samples / "snips-r8")})
    first, second, third = (manager.submit(request, title="") for request in (plain, measure, plain))
    await watcher.until(lambda: third.is_over)
    assert [job.state for job in (first, second, third)] == [JobState.DONE] * 3
    report = next(event.report for event in watcher.events if event.job is second and event.kind == "result")
    assert report is not None
    environment = report.to_json()["environment"]
    assert (environment["nice"], environment["threads"]) == (own, len(os.sched_getaffinity(0)))


async def test_a_newer_job_of_a_group_replaces_the_older(manager: JobManager, watcher: Watcher, adapter: str) -> None:
    """What nobody waits for any more is cancelled, running or not."""
    running = manager.submit(analysis("slow", adapter), title="old", group="pane")
    await watcher.until(lambda: "started" in watcher.kinds(running))
    newer = manager.submit(JobRequest("spectrum", {"locator": adapter}), title="new", group="pane")
    await watcher.until(lambda: newer.is_over)
    assert (running.state, newer.state) == (JobState.CANCELLED, JobState.DONE)


async def test_shutdown_leaves_no_process(manager: JobManager, watcher: Watcher, adapter: str) -> None:
    """Quitting in the middle of a job takes less than a second and leaves nothing running."""
    job = manager.submit(analysis("slow", adapter), title="slow")
    await watcher.until(lambda: "progress" in watcher.kinds(job))
    child = manager._child
    assert child is not None
    start = time.monotonic()
    await manager.shutdown()
    assert time.monotonic() - start < 1
    assert child.returncode is not None


async def test_a_child_that_cannot_be_started_fails_the_job(
    watcher: Watcher, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the system's reason; the manager lives on, and works once there is room again."""
    spawn = asyncio.create_subprocess_exec

    async def refuse(*arguments: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    manager = JobManager(watcher, session_options={})
    await manager.start()
    request = JobRequest("spectrum", {"locator": adapter})
    first = manager.submit(request, title="first")
    await watcher.until(lambda: first.is_over)
    assert first.error == "No process could be started for this: resource temporarily unavailable."
    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
    second = manager.submit(request, title="second")
    await watcher.until(lambda: second.is_over)
    assert second.state is JobState.DONE
    await manager.shutdown()


def test_wire_keeps_everything(tmp_path: Path) -> None:
    """A Report survives the way through JSON unchanged."""
    import json

    report = Session().spectrum(str(write_adapter(tmp_path / "a")))
    again = report_from_wire(json.loads(json.dumps(report_to_wire(report))))
    assert isinstance(again, Report)
    assert again == report
