"""Stand-ins for the session and the jobs, and small ways to look at a screen."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from textual.screen import Screen

from lora_lab.domain.library import EntryKind, LibraryEntry
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import LoraLabError
from lora_lab.tui.app import LoraLabApp

Reached = TypeVar("Reached", bound=Screen[Any])
SIZES = [(80, 24), (120, 36)]
DAY_SECONDS = 86400
_TURN_SECONDS, _LOOK_SECONDS = 0.03, 0.01


def entry(name: str, **values: Any) -> LibraryEntry:
    """An adapter as a scan gives it."""
    filled = {
        "format": "peft",
        "peft_type": "LORA",
        "base_model": "Qwen/Qwen2.5-0.5B",
        "rank_min": 16,
        "rank_max": 16,
        "alpha": 32.0,
        "modules": 96,
        "parameters": 2_031_616,
        "size_bytes": 8_130_000,
        "dtype": "F32",
        "modified_seconds": 1_700_000_000.0,
    }
    path = values.pop("path", f"/library/{name}")
    return LibraryEntry(EntryKind.ADAPTER, name, path, **{**filled, **values})


def small_library() -> list[LibraryEntry]:
    """Seven rows of every kind there is."""
    return [
        entry("sql-expert"),
        entry("chat-de", rank_min=8, rank_max=8, alpha=16.0, parameters=1_015_808, size_bytes=4_070_000),
        entry("legal-ner", base_model="google-bert/bert-base-uncased", rank_min=4, rank_max=4, alpha=8.0),
        entry("math-dora", base_model="meta-llama/Llama-3.2-1B", rank_min=32, rank_max=32, features=("dora",)),
        entry("mixed-10", rank_min=4, rank_max=16, alpha=None, features=("rank_pattern",), warnings=1),
        entry("mixed-9", rank_min=4, rank_max=16, alpha=None, features=("rank_pattern",)),
        LibraryEntry(
            EntryKind.ADAPTER,
            "broken",
            "/library/broken",
            error="adapter_model.safetensors ends after 12 bytes, expected 4096.",
            hint="Download it again.",
        ),
        LibraryEntry(
            EntryKind.BASE, "tiny-base", "/library/tiny-base", parameters=5_000_000, size_bytes=10_000_000, shards=2
        ),
    ]


def spectrum_report(norm: float, layers: int = 4) -> Report:
    """A spectrum of `layers` layers of two projections each."""
    rows = [
        {
            "module": f"model.layers.{layer}.self_attn.{projection}",
            "frobenius_norm": norm * (layer + 1) / layers * share,
            "singular_values": [1.0, 0.5],
        }
        for layer in range(layers)
        for projection, share in (("q_proj", 0.5), ("v_proj", 1.0))
    ]
    total = math.hypot(*(float(row["frobenius_norm"]) for row in rows))  # type: ignore[arg-type]
    columns = (Column("module", "Module", ColumnKind.TEXT), Column("frobenius_norm", "‖ΔW‖_F"))
    values = {"frobenius_norm": total, "mean_effective_rank": 5.125}
    return Report(
        "spectrum",
        "Spectrum",
        tables=(Table("modules", "Modules", columns, tuple(rows)),),
        scalars=(Scalars("totals", "Totals", (), values),),
        findings=(Finding("zero_delta", "In 'model.layers.3.self_attn.q_proj' ΔW is zero."),),
    )


class FakeSession:
    """Gives out prepared entries."""

    def __init__(self, entries: Sequence[LibraryEntry], refuse: LoraLabError | None = None) -> None:
        self.entries = list(entries)
        self.refuse = refuse

    def scan(self, locator: str) -> Iterator[LibraryEntry]:
        """One by one."""
        if self.refuse:
            raise self.refuse
        yield from self.entries

    def inspect(self, locator: str) -> Report:
        """Two modules."""
        rows = tuple(
            {"module": f"model.layers.{layer}.self_attn.{projection}", "scaling": 2.0}
            for layer in range(4)
            for projection in ("q_proj", "v_proj")
        )
        return Report("inspect", "Inspection", tables=(Table("modules", "Modules", (), rows),))


@dataclass
class FakeJob:
    """What a job looks like from outside."""

    id: int
    request: Any
    title: str
    group: str
    priority: int
    state: str = "queued"
    done: int = 0
    total: int = 0
    what: str = ""
    error: str | None = None
    hint: str | None = None
    finished_seconds: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state in ("done", "failed", "cancelled")


@dataclass
class FakeEvent:
    """What a manager tells."""

    job: FakeJob
    kind: str
    table: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    report: Report | None = None


class FakeJobs:
    """Jobs that go on when a test says so, and never by themselves."""

    def __init__(self, on_event: Callable[[Any], None]) -> None:
        self.on_event = on_event
        self.jobs: list[FakeJob] = []
        self.is_shut_down = False

    async def start(self) -> None:
        """Ready at once."""

    def submit(self, request: Any, *, title: str, group: str = "", priority: int = 0) -> FakeJob:
        """Queue it."""
        job = FakeJob(len(self.jobs), request, title, group, priority)
        self.jobs.append(job)
        return job

    def cancel(self, job: FakeJob) -> None:
        """Cancelled at once."""
        job.state = "cancelled"
        self.on_event(FakeEvent(job, "cancelled"))

    def reprioritise(self, job: FakeJob, priority: int) -> None:
        """Note it."""
        job.priority = priority

    async def shutdown(self) -> None:
        """Note it."""
        self.is_shut_down = True

    # What a test does with them.

    def waiting(self) -> list[FakeJob]:
        """Queued jobs, in the order they would run."""
        return sorted((job for job in self.jobs if job.state == "queued"), key=lambda job: -job.priority)

    def begin(self, job: FakeJob, done: int = 1, total: int = 4) -> None:
        """It runs."""
        job.state, job.done, job.total = "running", done, total
        self.on_event(FakeEvent(job, "started"))
        self.on_event(FakeEvent(job, "progress"))

    def finish(self, job: FakeJob, report: Report) -> None:
        """It is done."""
        job.state = "done"
        self.on_event(FakeEvent(job, "result", report=report))

    def fail(self, job: FakeJob, error: str, hint: str = "") -> None:
        """It went wrong."""
        job.state, job.error, job.hint = "failed", error, hint
        self.on_event(FakeEvent(job, "failed"))


def make_app(entries: Sequence[LibraryEntry] | None = None, **options: Any) -> LoraLabApp:
    """The application on stand-ins."""
    session = options.pop("session", None) or FakeSession(small_library() if entries is None else entries)
    sources = options.pop("sources", ["adapters"])
    return LoraLabApp(options, sources, session=session, jobs=options.pop("jobs", FakeJobs))


def screen_text(app: LoraLabApp) -> str:
    """The screen as plain text, line by line."""
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in strips)


async def until(pilot: Any, condition: Callable[[], object], turns: int = 500) -> None:
    """Let the application go on until `condition` holds, and all that it has to do then is done.

    What is waited for is looked at without pausing by the pilot, which has every widget answer each time.
    """
    end = time.monotonic() + turns * _TURN_SECONDS
    has_waited = False
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        assert pilot.app._exception is None, "the application has failed"
        await asyncio.sleep(_LOOK_SECONDS)
        has_waited = True
    if has_waited:
        await pilot.pause(0)


async def reached(pilot: Any, kind: type[Reached], turns: int = 500) -> Reached:
    """The screen, once it is one of this kind."""
    await until(pilot, lambda: isinstance(pilot.app.screen, kind), turns)
    screen = pilot.app.screen
    assert isinstance(screen, kind)
    return screen


def point_at(app: Any, name: str) -> None:
    """Put the library's cursor on the row called `name`."""
    rows = app.library.library.rows.items()
    app.library.table.move_to(next(key for key, row in rows if row.name == name))


async def press_each(pilot: Any, focused: Any, leaves: set[str], *, is_home: bool = False) -> None:
    """Press every key but `leaves` on a widget; whatever each opens is left by esc, and the screen is still there.

    Parameters
    ----------
    is_home : the screen is the library, which is gone back to from those that esc does not leave
    """
    app, screen = pilot.app, pilot.app.screen
    focused.focus()
    await pilot.pause()
    keys = [key for key in screen.active_bindings if key not in leaves]
    assert len(keys) > 20
    for key in keys:
        await pilot.press(key)
        for _ in range(3):
            if app.screen is not screen:
                await pilot.press("escape")
        if is_home:
            app.go_home()
            await pilot.pause()
        assert app.screen is screen, key
        focused.focus()
    assert app.is_running


async def ready(pilot: Any) -> None:
    """Let the first scan end."""
    app = pilot.app
    await until(pilot, lambda: hasattr(app.screen, "library") and app.screen._is_complete and app.is_measuring)
    await pilot.pause()


def write_adapter(folder: Path, *, rank: int = 4, layers: int = 2, seed: int = 0, base: str = "tiny") -> Path:
    """A small adapter in PEFT's layout, with two projections a layer."""
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for projection, out in (("q_proj", 24), ("v_proj", 12)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, 24, generator=random)
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=random)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    configuration = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": base,
    }
    (folder / "adapter_config.json").write_text(json.dumps(configuration), encoding="utf-8")
    return folder
