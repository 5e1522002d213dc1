"""Two adapters' overlap, made up to the schema of the analyses; and a way to open the screen on it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from textual.pilot import Pilot
from tui.fakes import make_app, screen_text, until

from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.compare.feed import Compared
from lora_lab.tui.compare.screen import CompareScreen

A, B = "/library/sql-expert", "/library/chat-de"
DIMENSION = 896
ANGLES = "principal_angles_radians"

COLUMNS = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("shape", "Shape", ColumnKind.SHAPE),
    Column("dimension", "d", ColumnKind.INTEGER),
    Column("rank_a", "rank A", ColumnKind.INTEGER),
    Column("rank_b", "rank B", ColumnKind.INTEGER),
    Column("phi_first", "φ(1,1)"),
    Column("phi_full", "φ", formula="‖U_Aᵀ U_B‖²_F / min(r_A, r_B)", reference="arXiv 2106.09685, section 7.2"),
    Column("phi_full_random", "random", formula="max(r_A, r_B) / d"),
    Column("cosine", "cos ΔW"),
    Column("grassmann_distance", "Grassmann", unit="rad"),
    Column("projection_distance", "projection"),
    Column(ANGLES, "principal angles", ColumnKind.CURVE, unit="rad"),
    Column("phi", "φ(i,j)", ColumnKind.HEATMAP, index_title="i of A, j of B"),
    Column("phi_random", "random", ColumnKind.HEATMAP, index_title="i of A, j of B"),
)


def module_names(layers: int = 12) -> list[str]:
    """Attention modules in natural order."""
    return [f"model.layers.{layer}.self_attn.{name}" for layer in range(layers) for name in ("q_proj", "v_proj")]


def angles_of(place: int, rank: int) -> list[float]:
    """Principal angles that differ from module to module."""
    return [min(math.pi / 2, 0.2 + 0.05 * ((7 * place) % 11) + 1.2 * k / rank) for k in range(rank)]


def grid_of(angles: Sequence[float], rank_a: int, rank_b: int) -> list[list[float]]:
    """φ of two subspaces whose k-th directions meet at the k-th angle and are else orthogonal."""
    shared = [math.cos(angle) ** 2 for angle in angles]
    return [[sum(shared[: min(i, j)]) / min(i, j) for j in range(1, rank_b + 1)] for i in range(1, rank_a + 1)]


def row_of(module: str, place: int, *, rank_a: int = 8, rank_b: int = 16, has_grid: bool = False) -> dict[str, Any]:
    """A row as the analysis gives it; rank 0 is a ΔW of zero."""
    is_known = bool(rank_a and rank_b)
    angles = angles_of(place, min(rank_a, rank_b)) if is_known else []
    phi = grid_of(angles, rank_a, rank_b)
    row: dict[str, Any] = {
        "module": module,
        "shape": [128, DIMENSION],
        "dimension": DIMENSION,
        "rank_a": rank_a,
        "rank_b": rank_b,
        "phi_first": phi[0][0] if is_known else None,
        "phi_full": phi[-1][-1] if is_known else None,
        "phi_full_random": max(rank_a, rank_b) / DIMENSION if is_known else None,
        "cosine": math.cos(1.5 + place) / 2 if is_known else None,
        "grassmann_distance": math.hypot(*angles) if is_known else None,
        "projection_distance": math.sqrt(sum(math.sin(angle) ** 2 for angle in angles)) if is_known else None,
        ANGLES: angles,
    }
    if has_grid:
        chance = [[max(i, j) / DIMENSION for j in range(1, rank_b + 1)] for i in range(1, rank_a + 1)]
        row |= {"phi": phi, "phi_random": chance}
    return row


def report_of(
    rows: Sequence[dict[str, Any]],
    *,
    findings: Sequence[Finding] = (),
    only_in_a: Sequence[str] = (),
    side: str = "right",
) -> Report:
    """The whole report."""
    alone = Scalars(
        "",
        "Comparison",
        (
            Column("side", "Side", ColumnKind.TEXT),
            Column("only_in_a", "Only in A", ColumnKind.LIST),
            Column("only_in_b", "Only in B", ColumnKind.LIST),
        ),
        {"side": side, "only_in_a": list(only_in_a), "only_in_b": []},
    )
    totals = Scalars(
        "totals",
        "Totals",
        (Column("modules", "Modules", ColumnKind.INTEGER), Column("cosine", "cos ΔW")),
        {"modules": len(rows), "cosine": 0.0625},
    )
    return Report(
        "overlap",
        "Overlap of sql-expert and chat-de",
        (Table("modules", "Modules", COLUMNS, tuple(rows)),),
        (alone, totals),
        tuple(findings),
    )


def rows_of(modules: Sequence[str], **options: Any) -> list[dict[str, Any]]:
    """A row for each module."""
    return [row_of(module, place, **options) for place, module in enumerate(modules)]


def diff_report(modules: Sequence[str]) -> Report:
    """Differences of weights and of configuration."""
    columns = (
        Column("module", "Module", ColumnKind.TEXT),
        Column("in", "In", ColumnKind.TEXT),
        Column("rank_a", "rank A", ColumnKind.INTEGER),
        Column("rank_b", "rank B", ColumnKind.INTEGER),
        Column("relative_difference", "‖A−B‖/‖A‖"),
        Column("cosine", "cos ΔW"),
        Column("phi", "φ"),
    )
    rows = tuple(
        {
            "module": module,
            "in": "both" if place else "a",
            "rank_a": 8,
            "rank_b": 16 if place else None,
            "relative_difference": 1.25 + place if place else None,
            "cosine": 0.5 / (1 + place) if place else None,
            "phi": 0.25,
        }
        for place, module in enumerate(modules)
    )
    config = (Column("key", "Key", ColumnKind.TEXT), *(Column(one, one.upper(), ColumnKind.VALUE) for one in "ab"))
    settings = ({"key": "r", "a": 8, "b": 16}, {"key": "use_dora", "a": False, "b": True})
    return Report(
        "diff",
        "Difference",
        (Table("modules", "Modules", columns, rows), Table("config", "Configuration", config, settings, key="key")),
        (Scalars("", "All", (Column("identical", "Identical", ColumnKind.VALUE),), {"identical": False}),),
        (Finding("rank_differs", "The two have different ranks."),),
        verdict=False,
    )


class Opened:
    """The application, the screen on top, and the stand-in for its jobs."""

    def __init__(self, app: LoraLabApp, pilot: Pilot[Any], screen: CompareScreen) -> None:
        self.app, self.pilot, self.screen = app, pilot, screen
        self.jobs: Any = app.jobs

    def waiting(self, analysis: str, *, grid: str | None = None) -> list[Any]:
        """Queued jobs of one analysis; of the overlap, those with or without grids."""
        found = [job for job in self.jobs.waiting() if job.request.arguments.get("id") == analysis]
        return [job for job in found if grid is None or job.request.arguments["parameters"]["grid"] == grid]

    async def rows(self, report: Report) -> None:
        """End the job for the rows."""
        begun = [job for job in self.jobs.jobs if job.state in ("queued", "running")]
        job = next(job for job in begun if job.request.arguments.get("parameters", {}).get("grid") == "false")
        self.jobs.finish(job, report)
        await self.pilot.pause()

    async def grid(self, row: dict[str, Any] | None = None, **options: Any) -> None:
        """Wait for the job for the grid under the cursor, and end it."""
        await until(self.pilot, lambda: self.waiting("overlap", grid="true"))
        module = self.screen.module
        assert module is not None
        place = list(self.screen.feed.rows).index(module)
        whole = report_of([row or row_of(module, place, has_grid=True, **options)])
        self.jobs.finish(self.waiting("overlap", grid="true")[0], whole)
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        """Type, and let the screen settle."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    def words(self) -> str:
        """The screen as one line of words: sentences that were broken are whole again."""
        return " ".join(self.text().translate(str.maketrans("│╭╮╰╯─", "      ")).split())

    def text(self) -> str:
        """The screen, line by line."""
        return screen_text(self.app)

    @property
    def compared(self) -> Compared:
        """What is compared now."""
        return self.screen.compared


@asynccontextmanager
async def open_pair(size: tuple[int, int] = (80, 24), *, locators: tuple[str, str] = (A, B)) -> AsyncIterator[Opened]:
    """Open the screen and wait until it has asked for the rows."""
    app = make_app(entries=[], state=False)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.is_measuring)
        app.open_compare(locators)
        await until(pilot, lambda: isinstance(app.screen, CompareScreen) and app.jobs.waiting())  # type: ignore[attr-defined]
        screen = app.screen
        assert isinstance(screen, CompareScreen)
        await pilot.pause()
        yield Opened(app, pilot, screen)
