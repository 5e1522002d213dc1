"""An adapter, its spectrum and an analysis of a plugin, made up; and ways to open the screen on them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from textual.pilot import Pilot
from tui.fakes import make_app, reached, screen_text, until

from lora_lab.analyses.columns import IDENTITY, MEASURES, SINGULAR_VALUES, TOTALS
from lora_lab.domain.adapter import Adapter, Delta, DeltaKind, Effect, Feature
from lora_lab.domain.dtypes import DType
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.domain.tensors import FileStamp, TensorRef
from lora_lab.errors import LoraLabError
from lora_lab.extension.contracts import Need
from lora_lab.linalg.measures import measure
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.detail.keys import ModuleFilter
from lora_lab.tui.detail.screen import DetailScreen

STAMP = FileStamp("/library/sql-expert/adapter_model.safetensors", 8_130_000, 0, 1, 1)
LAYERS = 12
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def module_names(layers: int = LAYERS, projections: Sequence[str] = PROJECTIONS) -> list[str]:
    """Attention modules in natural order."""
    return [f"model.layers.{layer}.self_attn.{name}" for layer in range(layers) for name in projections]


def _tensor(name: str, shape: tuple[int, ...]) -> TensorRef:
    return TensorRef(STAMP, name, DType.F32, shape, 0, 4 * math.prod(shape))


def make_adapter(modules: Sequence[str], *, rank: int = 16, locator: str = "/library/sql-expert") -> Adapter:
    """An adapter as its headers would say."""
    deltas = tuple(
        Delta(
            module,
            DeltaKind.LINEAR,
            _tensor(f"{module}.lora_A.weight", (rank, 896)),
            _tensor(f"{module}.lora_B.weight", (128, rank)),
            rank,
            2.0 * rank,
            2.0,
            (128, 896),
        )
        for module in modules
    )
    return Adapter(
        name=locator.rpartition("/")[2],
        locator=locator,
        path=locator,
        format="peft",
        deltas=deltas,
        files=(STAMP,),
        peft_type="LORA",
        base_model="Qwen/Qwen2.5-0.5B",
        configuration={"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj", "v_proj"]},
        metadata={"format": "pt"},
        features=(Feature("rslora", "Rank-stabilised scaling", Effect.HONOURED, "scaling is alpha/√r.", 48),),
        findings=(Finding("unused_key", "adapter_config.json holds the key 'colour', which nothing reads."),),
    )


def singular_values(place: int, rank: int, *, decay: float = 0.75) -> list[float]:
    """A spectrum that falls off; different for each module."""
    largest = 0.4 + 1.6 * abs(math.sin(0.37 * place + 0.5))
    return [largest * decay**k * (1 + 0.1 * math.cos(3.0 * k)) for k in range(rank)]


def spectrum_row(module: str, values: list[float], rank: int) -> dict[str, Any]:
    """A row as the analysis gives it."""
    return {
        "module": module,
        "shape": [128, 896],
        "rank": rank,
        "scaling": 2.0,
        "singular_values": values,
        **asdict(measure(values, tolerance=1e-6)),
    }


def make_report(adapter: Adapter, rows: Sequence[dict[str, Any]] | None = None, *, decay: float = 0.75) -> Report:
    """The spectrum of an adapter."""
    if rows is None:
        rows = [
            spectrum_row(delta.module, singular_values(place, delta.rank, decay=decay), delta.rank)
            for place, delta in enumerate(adapter.deltas)
        ]
    known = [row for row in rows if row["singular_values"] is not None]
    largest = max(known, key=lambda row: row["frobenius_norm"])
    totals = {
        "modules": len(rows),
        "parameters": adapter.parameters,
        "frobenius_norm": math.hypot(*(row["frobenius_norm"] for row in known)),
        "largest_module": largest["module"],
        "largest_norm": largest["frobenius_norm"],
        "mean_effective_rank": 5.0,
        "zero_modules": 0,
        "not_finite_modules": len(rows) - len(known),
    }
    return Report(
        "spectrum",
        f"Spectrum of {adapter.name}",
        tables=(Table("modules", "Modules", (*IDENTITY, SINGULAR_VALUES, *MEASURES), tuple(rows)),),
        scalars=(Scalars("totals", "Totals", TOTALS, totals),),
        findings=(Finding("magnitudes", "DoRA magnitudes are outside ΔW."),),
    )


class EdgeAnalysis:
    """What a stranger's plugin might bring."""

    id = "edges"
    title = "Noise edge"
    summary = "Which directions stand out from random factors."
    reference = "Marchenko & Pastur 1967"
    parameters = ()
    subjects = (1, 1)
    takes_models = False
    base = Need.NO

    def run(self, context: Any) -> Report:
        """Never called: jobs are made up."""
        return pytest.fail("a job was run in this process")


def edge_report(modules: Sequence[str]) -> Report:
    """Two curves and a level for each module."""
    columns = (
        Column("module", "Module", ColumnKind.TEXT),
        Column("learnt", "Learnt", ColumnKind.INTEGER),
        Column("observed", "observed", ColumnKind.CURVE, index_title="k", is_logarithmic=True),
        Column("expected", "random factors", ColumnKind.CURVE, index_title="k", is_logarithmic=True),
        Column("edge", "edge", is_marker=True),
    )
    rows = tuple(
        {
            "module": module,
            "learnt": 3,
            "observed": [2.0, 1.0, 0.5, 0.1],
            "expected": [0.6, 0.5, 0.4, 0.3],
            "edge": 0.65,
        }
        for module in modules
    )
    scalars = Scalars("", "All", (Column("learnt", "Learnt directions", ColumnKind.INTEGER),), {"learnt": 3})
    finding = Finding("ill_posed", "A threshold of ΔW itself is ill-posed.")
    return Report("analyze", "Noise edge", (Table("modules", "Modules", columns, rows),), (scalars,), (finding,))


class FakeSession:
    """Adapters by locator, and analyses."""

    def __init__(self, adapters: Mapping[str, Adapter | LoraLabError], analyses: Sequence[Any] = ()) -> None:
        self.adapters = dict(adapters)
        self.registry = SimpleNamespace(analyses={analysis.id: analysis for analysis in analyses})

    def scan(self, locator: str) -> list[Any]:
        """An empty library under the screen."""
        return []

    def adapter(self, locator: str) -> Adapter:
        """The one at `locator`."""
        found = self.adapters[locator]
        if isinstance(found, LoraLabError):
            raise found
        return found


class Opened:
    """The application, the screen on top, and the stand-in for its jobs."""

    def __init__(self, app: LoraLabApp, pilot: Pilot[Any], screen: DetailScreen) -> None:
        self.app, self.pilot, self.screen = app, pilot, screen
        self.jobs: Any = app.jobs

    def jobs_of(self, locator: str) -> list[Any]:
        """Spectrum jobs that wait for this adapter."""
        return [job for job in self.jobs.waiting() if job.request.arguments.get("locator") == locator]

    async def finish(self, report: Report, locator: str | None = None) -> None:
        """End every waiting spectrum job of an adapter with `report`."""
        for job in self.jobs_of(locator or self.screen.locator):
            self.jobs.finish(job, report)
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        """Type, and let the screen settle."""
        await self.pilot.press(*keys)

    async def filter(self, typed: str) -> None:
        """Open the filter and have `typed` in it."""
        await self.pilot.press("slash")
        self.screen.query_one(ModuleFilter).value = typed
        await self.pilot.pause()

    @property
    def plot(self) -> Any:
        """The plot of singular values."""
        from lora_lab.tui.plots.spectrum import SpectrumPlot

        return self.screen.query_one(SpectrumPlot)

    def words(self) -> str:
        """The screen as one line of words: sentences that were broken are whole again."""
        return " ".join(self.text().translate(str.maketrans("│╭╮╰╯─", "      ")).split())

    def text(self) -> str:
        """The screen, line by line."""
        return screen_text(self.app)


@asynccontextmanager
async def open_detail(
    adapter: Adapter | LoraLabError,
    *,
    size: tuple[int, int] = (80, 24),
    others: Sequence[Adapter] = (),
    analyses: Sequence[Any] = (),
    base: str | None = None,
) -> AsyncIterator[Opened]:
    """Open the screen and wait until the headers are read and the plot is there."""
    locator = adapter.locator if isinstance(adapter, Adapter) else "/library/broken"
    session = FakeSession({locator: adapter, **{other.locator: other for other in others}}, analyses)
    app = make_app(session=session)
    app.base = base
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.is_measuring)
        app.open_detail(locator, overlays=tuple(other.locator for other in others))
        screen = await reached(pilot, DetailScreen)
        if isinstance(adapter, Adapter):
            await until(pilot, lambda: screen.adapter is not None and bool(app.jobs.waiting()))  # type: ignore[attr-defined]
            await until(pilot, lambda: bool(screen.query("SpectrumPlot")))
        else:
            await until(pilot, lambda: screen.has_class("-unreadable"))
        await pilot.pause()
        yield Opened(app, pilot, screen)
