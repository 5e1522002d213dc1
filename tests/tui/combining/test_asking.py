"""One question counts, the last; what comes too late is kept for later and never taken for the answer."""

from __future__ import annotations

import pytest
from tui.fakes import FakeEvent, FakeJob, FakeJobs

from lora_lab.domain.report import Report
from lora_lab.tui.combining.asking import Asker, Question
from lora_lab.tui.detail.feed import JobDesk
from lora_lab.tui.job_list import JobList

ONE, TWO, THREE = (Question("combine", {"rank": rank}) for rank in (1, 2, 3))


class Line:
    """An asker with its jobs."""

    def __init__(self) -> None:
        self.asker = Asker("preview", 1)
        self.news: list[bool] = []
        self.jobs = FakeJobs(self._take)
        self.desk = JobDesk(self.jobs, JobList())  # type: ignore[arg-type]

    def _take(self, event: FakeEvent) -> None:
        self.news.append(self.asker.take(event, self.desk))  # type: ignore[arg-type]

    def ask(self, question: Question | None) -> None:
        self.asker.ask(question, self.desk)

    @property
    def states(self) -> list[str]:
        return [job.state for job in self.jobs.jobs]

    @property
    def last(self) -> FakeJob:
        return self.jobs.jobs[-1]


@pytest.fixture
def line() -> Line:
    return Line()


def test_a_late_answer_never_lands(line: Line) -> None:
    """It is passed over, the newest question is asked then, and the old one need not be asked again."""
    line.ask(ONE)
    first = line.last
    line.jobs.begin(first)
    line.ask(TWO)
    line.ask(THREE)
    assert line.states == ["running"]  # given a moment
    assert line.asker.is_obsolete
    line.jobs.finish(first, Report("combine", "one"))
    assert line.asker.report is None
    assert line.asker.is_waiting
    assert [job.request.arguments["rank"] for job in line.jobs.jobs] == [1, 3]
    line.jobs.finish(line.last, Report("combine", "three"))
    assert line.asker.report is not None
    assert line.asker.report.title == "three"
    line.ask(ONE)
    assert line.asker.report.title == "one"
    assert len(line.jobs.jobs) == 2


def test_what_takes_long_and_is_not_wanted_is_cancelled(line: Line) -> None:
    """When its moment is over; one that waits still, at once."""
    line.ask(ONE)
    line.jobs.begin(line.last)
    line.ask(TWO)
    line.asker.expire(line.desk)
    assert line.states == ["cancelled", "queued"]
    line.ask(THREE)
    assert line.states == ["cancelled", "cancelled", "queued"]
    line.asker.expire(line.desk)
    assert line.states[-1] == "queued"
    line.ask(None)
    assert line.states[-1] == "cancelled"
    assert not line.asker.is_waiting


def test_going_back_while_it_runs(line: Line) -> None:
    """The job that is under way answers the question that counts again."""
    line.ask(ONE)
    line.jobs.begin(line.last)
    line.ask(TWO)
    line.ask(ONE)
    assert not line.asker.is_obsolete
    line.jobs.finish(line.last, Report("combine", "one"))
    assert line.asker.report is not None
    assert len(line.jobs.jobs) == 1


def test_a_refusal_is_about_its_question_alone(line: Line) -> None:
    """It stays until something else is asked, or the same on request."""
    line.ask(ONE)
    line.jobs.fail(line.last, "It does not fit.", "Try another.")
    assert (line.asker.reason, line.asker.hint) == ("It does not fit.", "Try another.")
    assert not line.asker.is_waiting
    line.ask(TWO)
    assert line.asker.reason == ""
    late = line.last
    line.jobs.begin(late)
    line.ask(THREE)
    line.jobs.fail(late, "Too late.")
    assert line.asker.reason == ""
    line.jobs.cancel(line.last)
    assert line.asker.reason == "It was cancelled."
    line.asker.forget(line.desk)
    assert line.asker.is_waiting
    assert line.states[-1] == "queued"


def test_rows_before_the_whole(line: Line) -> None:
    """Those of the question that counts."""
    line.ask(ONE)
    line.jobs.begin(line.last)
    line.jobs.on_event(FakeEvent(line.last, "rows", rows=[{"id": "svd"}]))
    assert line.asker.rows == [{"id": "svd"}]
    line.ask(TWO)
    assert line.asker.rows == []
    line.asker.expire(line.desk)
    assert line.asker.rows == []
