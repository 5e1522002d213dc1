"""The list of jobs, and what happens to them when one leaves."""

from __future__ import annotations

from typing import Any

from tui.fakes import FakeJob, entry, make_app, ready, screen_text

from lora_lab.jobs import JobRequest
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.confirm import Confirm
from lora_lab.tui.jobs_screen import JobsScreen


def submit(app: LoraLabApp, title: str) -> FakeJob:
    """A job that somebody asked for."""
    job: Any = app.jobs.submit(JobRequest("analyze", {"id": "x", "locators": ["a"]}), title=title)
    app.job_list.add(job)
    return job  # type: ignore[no-any-return]


async def test_progress_count_and_reason(size: tuple[int, int]) -> None:
    """Running shows percent, count and ETA; failed shows the reason; the header counts on every screen."""
    app = make_app([])
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        jobs: Any = app.jobs
        first, second = submit(app, "first [b]job[/b]"), submit(app, "second")
        jobs.begin(first, 1, 4)
        await pilot.press("7")
        await pilot.pause()
        text = screen_text(app)
        for shown in ("first [b]job[/b]", "25 %", "1/4", "0:0", "▶ running", "· queued", "2 jobs ▶ 25 %"):
            assert shown in text
        jobs.fail(second, "torch is not installed.", "pip install torch")
        await pilot.press("g")
        await pilot.pause()
        text = screen_text(app)
        assert "✗ failed" in text
        assert "torch is not installed. pip install torch" in text
        await pilot.press("y")
        assert app.clipboard == "torch is not installed. pip install torch"
        await pilot.press("1")
        await pilot.pause()
        assert "1 job ▶ 25 %" in screen_text(app)


async def test_cancel_retry_clear() -> None:
    """c, R and D do what they say, and say why when they cannot."""
    app = make_app([])
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        jobs: Any = app.jobs
        job = submit(app, "work")
        jobs.begin(job)
        await pilot.press("7", "R")
        await pilot.pause()
        assert any("only a job that is over" in toast.message for toast in app._notifications)
        await pilot.press("c")
        await pilot.pause()
        assert job.state == "cancelled"
        assert "– cancelled" in screen_text(app)
        await pilot.press("R")
        await pilot.pause()
        assert [(again.title, again.state, again.request) for again in app.job_list.jobs] == [
            ("work", "queued", job.request)
        ]
        jobs.fail(jobs.jobs[-1], "No.")
        await pilot.pause()
        await pilot.press("D")
        await pilot.pause()
        assert app.job_list.jobs == []
        assert "No jobs." in screen_text(app)


async def test_background_jobs_leave_the_list() -> None:
    """What fills a table is listed while it runs, and no question is asked about it."""
    app = make_app([entry("a"), entry("b")])
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        jobs: Any = app.jobs
        jobs.begin(jobs.waiting()[0])
        await pilot.press("7")
        await pilot.pause()
        assert "spectrum a" in screen_text(app)
        assert app.job_list.asked_for() == []
        await pilot.press("q", "q")
    assert app.return_code == 0
    assert jobs.is_shut_down


async def test_quitting_asks_when_a_job_would_be_lost() -> None:
    """n stays, y quits; ctrl+q asks nothing."""
    app = make_app([])
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        jobs: Any = app.jobs
        jobs.begin(submit(app, "work"))
        await pilot.press("q")
        assert isinstance(app.screen, Confirm)
        assert "1 job runs: work." in screen_text(app)
        await pilot.press("n", "q", "escape")
        assert not isinstance(app.screen, Confirm)
        await pilot.press("7")
        assert isinstance(app.screen, JobsScreen)
        await pilot.press("q", "q", "y")
    assert app.return_code == 0
    assert jobs.is_shut_down
