"""What arrives of two adapters: one row for each module, and the grid of a module when it is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lora_lab.domain.report import Column, ColumnKind
from lora_lab.tui.detail.feed import literal_glob

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.report import Report
    from lora_lab.jobs import Job, JobEvent
    from lora_lab.tui.detail.feed import JobDesk
    from lora_lab.tui.plots.cells import Matrix

ANALYSIS: Final = "overlap"
_TABLE: Final = "modules"
_ROWS_PRIORITY: Final = 150
_GRID_PRIORITY: Final = 260
_MOST_GRIDS: Final = 32
_PHI: Final = Column("phi", "φ(i,j)", ColumnKind.HEATMAP, index_title="i of A, j of B")

#: What each side compares, in the order of the key.
SIDES: Final = {
    "right": "right-singular subspaces of ΔW: its inputs",
    "left": "left-singular subspaces of ΔW: its outputs",
    "A": "right-singular subspaces of lora_A, as in the paper",
    "B": "left-singular subspaces of lora_B",
}


class Compared(NamedTuple):
    """Which two are compared, and on which side."""

    a: str  # locator
    b: str
    side: str

    def swapped(self) -> Compared:
        """The other way round."""
        return self._replace(a=self.b, b=self.a)

    def next_side(self) -> Compared:
        """The side after this one, round and round."""
        sides = list(SIDES)
        return self._replace(side=sides[(sides.index(self.side) + 1) % len(sides)])

    def arguments(self, *, has_grid: bool, module: str | None = None) -> dict[str, Any]:
        """What ``Session.analyze`` is asked."""
        arguments: dict[str, Any] = {
            "id": ANALYSIS,
            "locators": [self.a, self.b],
            "parameters": {"side": self.side, "grid": "true" if has_grid else "false"},
        }
        return arguments if module is None else {**arguments, "modules": [literal_glob(module)]}


class OverlapFeed:
    """The rows of one comparison, as far as they are known.

    Parameters
    ----------
    compared : what is compared
    title : of the job
    """

    def __init__(self, compared: Compared, title: str) -> None:
        self.compared = compared
        self.rows: dict[str, Mapping[str, Any]] = {}
        self.report: Report | None = None
        self.reason = ""  # why there will be no report
        self.hint = ""
        self._title = title
        self._job: Job | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether more may come."""
        return self._job is not None

    @property
    def is_begun(self) -> bool:
        """Whether it has been asked for, or is there."""
        return self._job is not None or self.report is not None or bool(self.reason)

    @property
    def total(self) -> int:
        """How many rows there will be, once that is known."""
        return self._job.total if self._job is not None else len(self.rows)

    def begin(self, desk: JobDesk) -> None:
        """Ask for the rows, without their grids."""
        self.stop(desk)
        self.rows, self.report, self.reason, self.hint = {}, None, "", ""
        self._job = desk.submit(
            "analyze",
            self.compared.arguments(has_grid=False),
            title=self._title,
            group=f"overlap:{'|'.join(self.compared)}",
            priority=_ROWS_PRIORITY,
        )

    def rest(self, desk: JobDesk) -> None:
        """Nobody looks at it now: take it back unless it is being computed, when it is nearly there."""
        if self._job is not None and self._job.state == "queued":
            self.stop(desk)

    def stop(self, desk: JobDesk) -> None:
        """Take back what is not finished."""
        job, self._job = self._job, None
        if job is not None:
            desk.drop(job)

    def take(self, event: JobEvent, desk: JobDesk) -> bool:
        """Take in an event of our own job; False when it is another's."""
        if self._job is None or event.job.id != self._job.id:
            return False
        if event.kind == "rows" and event.table in ("", _TABLE):
            self._add(event.rows)
        elif event.kind == "result" and event.report is not None:
            self.report = event.report
            self._add(event.report.table(_TABLE).rows)
        elif event.kind == "failed":
            self.reason = event.job.error or "The overlap could not be computed."
            self.hint = event.job.hint or ""
        elif event.kind == "cancelled":
            self.reason, self.hint = "The overlap was cancelled.", "r computes it again."
        if event.kind in ("result", "failed", "cancelled"):
            desk.over(self._job)
            self._job = None
        return True

    def _add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows.update((row["module"], row) for row in rows)


@dataclass(frozen=True, slots=True)
class Grid:
    """φ(i,j) of one module and what random subspaces would have, or the reason why there is none."""

    phi: Matrix = ()
    random: Matrix = ()
    column: Column = _PHI
    reason: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(len(row) for row in self.phi)

    def at(self, row: int, column: int) -> tuple[float | None, float | None]:
        """φ and its random baseline at a place counted from 0."""
        return _value(self.phi, row, column), _value(self.random, row, column)


def _value(matrix: Matrix, row: int, column: int) -> float | None:
    return matrix[row][column] if row < len(matrix) and column < len(matrix[row]) else None


class Grids:
    """Grids that have come, the latest ones, and those that are asked for."""

    def __init__(self) -> None:
        self._known: dict[tuple[Compared, str], Grid] = {}
        self._asked: dict[tuple[Compared, str], Job] = {}

    def get(self, compared: Compared, module: str) -> Grid | None:
        """The grid, when it is there."""
        return self._known.get((compared, module))

    def is_asked(self, compared: Compared, module: str) -> bool:
        """Whether it is on its way."""
        return (compared, module) in self._asked

    def want(self, desk: JobDesk, compared: Compared, module: str, *, title: str) -> None:
        """Ask for this one; one that is queued and was wanted before is no longer.

        What is being computed goes on: it is a matter of milliseconds, ending the process that does it is not, and
        its grid is kept.
        """
        wanted = (compared, module)
        self.rest(desk, wanted)
        if wanted in self._asked or wanted in self._known:
            return
        self._asked[wanted] = desk.submit(
            "analyze",
            compared.arguments(has_grid=True, module=module),
            title=title,
            group=f"grid:{'|'.join(compared)}:{module}",
            priority=_GRID_PRIORITY,
        )

    def rest(self, desk: JobDesk, wanted: tuple[Compared, str] | None = None) -> None:
        """Take back what is queued, but for the one that is wanted."""
        for other, job in list(self._asked.items()):
            if other != wanted and job.state == "queued":
                del self._asked[other]
                desk.drop(job)

    def take(self, event: JobEvent, desk: JobDesk) -> bool:
        """Take in an event of one of our own jobs; False when it is another's."""
        wanted = next((key for key, job in self._asked.items() if job.id == event.job.id), None)
        if wanted is None:
            return False
        if event.kind in ("result", "failed", "cancelled"):
            job = self._asked.pop(wanted)
            desk.over(job)
            self._known[wanted] = _grid(event, wanted[1])
            while len(self._known) > _MOST_GRIDS:
                del self._known[next(iter(self._known))]
        return True

    def forget(self, desk: JobDesk) -> None:
        """Forget all, and take back what is asked for."""
        for job in self._asked.values():
            desk.drop(job)
        self._asked.clear()
        self._known.clear()


def _grid(event: JobEvent, module: str) -> Grid:
    if event.kind == "failed":
        return Grid(reason=f"{event.job.error or 'φ(i,j) could not be computed.'} {event.job.hint or ''}".strip())
    if event.kind == "cancelled" or event.report is None:
        return Grid(reason="φ(i,j) was cancelled. r computes it again.")
    table = event.report.table(_TABLE)
    row = next((row for row in table.rows if row["module"] == module), None)
    if row is None:
        return Grid(reason="The report has no row of this module.")
    column = next((column for column in table.columns if column.id == _PHI.id), _PHI)
    return Grid(row.get("phi") or (), row.get("phi_random") or (), column)
