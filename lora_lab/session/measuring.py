"""What a session measures, and what it has measured before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain import figures
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import LoraLabError, quoted
from lora_lab.session.records import Fingerprints, record_of
from lora_lab.storage.folders import data_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_lab.benchmarks.history import Entry, History
    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.extension.contracts import SwapStrategy
    from lora_lab.extension.registry import Registry

_RESULTS: Final = (
    Column("id", "Result", ColumnKind.TEXT),
    Column("benchmark", "Benchmark", ColumnKind.TEXT),
    Column("title", "Of", ColumnKind.TEXT),
    Column("device", "Device", ColumnKind.TEXT),
    Column("lora_lab", "lora-lab", ColumnKind.TEXT, is_wide=True),
    Column("commit", "Commit", ColumnKind.TEXT, is_wide=True),
    Column("path", "Path", ColumnKind.TEXT, is_wide=True),
    Column("error", "Problem", ColumnKind.TEXT, is_wide=True),
)
_SAVED: Final = (Column("saved", "Saved as", ColumnKind.TEXT),)


class Measuring(ABC):
    """Benchmarks, with a history in the user's data folder."""

    seed: int
    device: str
    _cache_folder: Path | None

    @property
    @abstractmethod
    def registry(self) -> Registry:
        """What is installed."""

    @property
    def history(self) -> History:
        """Results that were saved."""
        from lora_lab.benchmarks.history import History

        return History(data_folder() / "benchmarks")

    @abstractmethod
    def adapter(self, locator: str) -> Adapter:
        """Open an adapter."""

    @abstractmethod
    def base(self, locator: str, *, whole: bool = False, observer: Observer | None = None) -> Base:
        """Open a model."""

    def bench_swap(
        self,
        adapters: Sequence[str],
        *,
        base: str,
        strategies: Sequence[str] = (),
        repeats: int = 10,
        batches: Sequence[int] = (),
        modules: Sequence[str] = (),
        device: str | None = None,
        save: bool = True,
        observer: Observer | None = None,
    ) -> Report:
        """Measure ways of switching a model between two adapters, and after how many tokens merging pays off.

        Parameters
        ----------
        adapters : locators of two
        base : locator of the model that both were trained on
        strategies : of ``registry.strategies``, each measured once; none means all
        repeats : rounds in which all of them take turns
        batches : sequences in a step of tokens; none means 1, 8 and 32
        modules : globs; none means all
        device : auto, cpu, cuda, cuda:N or mps; None means the session's
        save : keep the result in the history

        Raises
        ------
        LoraLabError
            something does not fit, there is no room, or the observer says no.
        """
        from lora_lab.benchmarks.swapping.forward import BATCHES
        from lora_lab.benchmarks.swapping.run import SwapOptions, bench_swap
        from lora_lab.formats.factors import FactorReader
        from lora_lab.linalg.device import resolve_device
        from lora_lab.session.guarded import attributed

        if len(adapters) != 2:
            raise LoraLabError(f"bench swap got {figures.plural(len(adapters), 'adapter')}, expected two.")
        if repeats < 1 or any(batch < 1 for batch in batches):
            raise LoraLabError("Repeats and batches are counted from 1.")
        chosen = [self._strategy(name) for name in dict.fromkeys(strategies)] or list(self.registry.strategies.values())
        options = SwapOptions(
            repeats=repeats,
            batches=tuple(dict.fromkeys(batches)) or BATCHES,
            modules=tuple(modules),
            device=resolve_device(device or self.device),
            seed=self.seed,
            attributed=lambda one: attributed("strategy", one.id, self.registry.plugin_of("strategies", one.id)),
        )
        opened, model = [self.adapter(locator) for locator in adapters], self.base(base, whole=True)
        report = bench_swap(opened, model, chosen, reader=FactorReader(), options=options, observer=observer)
        # After the work, which hashing would disturb; large weights are known by their headers.
        read: list[Adapter | Base] = [*opened, model]
        inputs = tuple(record_of(one, fingerprints=Fingerprints(self._cache_folder)) for one in read)
        settings = {"strategies": [one.id for one in chosen], "repeats": repeats, "batches": list(options.batches)}
        report = replace(report, inputs=inputs, parameters={**settings, "modules": list(modules), "seed": self.seed})
        return self._kept(report, save=save)

    def bench_latency(
        self,
        *,
        base: str | None = None,
        grid: str = "",
        layers: int | None = None,
        rank: int = 8,
        targets: Sequence[str] = ("q_proj", "v_proj"),
        bottleneck: int | None = None,
        dtype: str | None = None,
        repeats: int | None = None,
        device: str | None = None,
        save: bool = True,
        observer: Observer | None = None,
    ) -> Report:
        """Measure what adapters add to a forward pass: table 1 of the LoRA paper, here.

        Parameters
        ----------
        base : locator of a model, or of a config.json alone, whose shapes are taken; None means GPT-2 medium's. No
            weights are read
        grid : such as ``32x512,16x256,1x128``: batch × length; nothing means the paper's, or what two minutes are
            enough for on a processor
        layers : of the stack; None means all, or what two minutes are enough for on a processor
        rank : of LoRA
        targets : linear layers of a block that LoRA adapts: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj,
            down_proj
        bottleneck : width of one bottleneck a block, half of it in each of two; None means the share of the model's
            width that the paper's take
        dtype : float32, float16 or bfloat16; None means the base's, float32 without one
        repeats : rounds that are kept; None means as many as two minutes are enough for
        device : auto, cpu, cuda, cuda:N or mps; None means the session's
        save : keep the result in the history

        Raises
        ------
        LoraLabError
            the base's blocks are not known, there is no room, or the observer says no.
        """
        from lora_lab.benchmarks.latency.grid import cells_of
        from lora_lab.benchmarks.latency.run import LatencyOptions, bench_latency
        from lora_lab.linalg.device import resolve_device

        options = LatencyOptions(
            cells=cells_of(grid) if grid else (),
            layers=layers,
            rank=rank,
            targets=tuple(targets),
            bottleneck=bottleneck,
            dtype=dtype,
            repeats=repeats,
            device=resolve_device(device or self.device),
            seed=self.seed,
        )
        settings = {"grid": grid, "layers": layers, "rank": rank, "targets": list(targets), "repeats": repeats}
        more = {"bottleneck": bottleneck, "dtype": dtype, "seed": self.seed}
        measure = partial(bench_latency, options=options, observer=observer)
        return self._of_shapes(base, measure, {**settings, **more}, save=save)

    def bench_mixed(
        self,
        *,
        base: str | None = None,
        batch: int = 32,
        length: int = 1,
        adapters: Sequence[int] = (),
        layers: int | None = None,
        rank: int = 8,
        targets: Sequence[str] = ("q_proj", "v_proj"),
        dtype: str | None = None,
        repeats: int | None = None,
        device: str | None = None,
        save: bool = True,
        observer: Observer | None = None,
    ) -> Report:
        """Measure a batch whose rows belong to several adapters: factors beside the weights, or one merged at a time.

        Parameters
        ----------
        base, layers, rank, targets, dtype, repeats, device, save : as of :meth:`bench_latency`
        batch : sequences
        length : tokens of each that go through at once; 1 is a step of generation
        adapters : how many there are in the batch, several numbers in turn; none means 1, 2, 4, 8, 16 and 32, those of
            them that divide the batch

        Raises
        ------
        LoraLabError
            the base's blocks are not known, a number does not divide the batch, there is no room, or the observer says
            no.
        """
        from lora_lab.benchmarks.latency.mixed import MixedOptions, bench_mixed
        from lora_lab.linalg.device import resolve_device

        settings = {"batch": batch, "length": length, "layers": layers, "rank": rank, "dtype": dtype}
        options = MixedOptions(
            batch=batch,
            length=length,
            counts=tuple(adapters),
            layers=layers,
            rank=rank,
            targets=tuple(targets),
            dtype=dtype,
            repeats=repeats,
            device=resolve_device(device or self.device),
            seed=self.seed,
        )
        more = {"adapters": list(adapters), "targets": list(targets), "repeats": repeats, "seed": self.seed}
        measure = partial(bench_mixed, options=options, observer=observer)
        return self._of_shapes(base, measure, {**settings, **more}, save=save)

    def _of_shapes(
        self,
        base: str | None,
        measure: Callable[[Base | None], Report],
        parameters: Mapping[str, Any],
        *,
        save: bool,
    ) -> Report:
        """Measure on the shapes of a model, which is then among the inputs, or on none."""
        model = None if base is None else self.base(base)
        report = measure(model)
        inputs = () if model is None else (record_of(model, fingerprints=Fingerprints(self._cache_folder)),)
        return self._kept(replace(report, inputs=inputs, parameters=dict(parameters)), save=save)

    def _strategy(self, name: str) -> SwapStrategy:
        found = self.registry.strategies.get(name)
        if found is None:
            known = ", ".join(self.registry.strategies)
            raise LoraLabError(
                f"There is no strategy {quoted(name)}, expected one of: {known}.",
                hint="lora-lab strategies says what each does.",
            )
        return found

    def bench_history(self) -> Report:
        """List the results of earlier benchmarks, the newest first; damaged ones with the reason."""
        entries = self.history.entries()
        rows = tuple(_row(entry) for entry in entries)
        findings = tuple(
            Finding("unreadable", f"{quoted(entry.id)} is left out. {entry.error}", entry.id)
            for entry in entries
            if entry.error is not None
        )
        if not entries:
            findings = (Finding("no_results", "Nothing was measured yet; lora-lab bench swap is a beginning."),)
        return Report(
            "bench history",
            "Results of benchmarks",
            tables=(Table("results", "Results", _RESULTS, rows, key="id"),),
            findings=findings,
        )

    def bench_result(self, result: str = "latest") -> Report:
        """Show a saved result again, as it was.

        Parameters
        ----------
        result : ``latest``, ``previous``, an id or its beginning, or the file of one

        Raises
        ------
        LoraLabError
            there is no such result, or it is damaged.
        """
        return self.history.report(result)

    def bench_compare(self, before: str = "previous", after: str = "latest") -> Report:
        """Compare two results: what got faster or slower by more than chance, and what else differs.

        Parameters
        ----------
        before, after : ``latest``, ``previous``, ids or their beginnings, or files

        Raises
        ------
        LoraLabError
            there is no such result, or they are of two different benchmarks.
        """
        from lora_lab.benchmarks.comparing import compared

        return compared(self.history.find(before), self.history.find(after))

    def _kept(self, report: Report, *, save: bool) -> Report:
        """`report`, saved where that is wished for, and saying under which id."""
        if not save:
            return report
        try:
            entry = self.history.save(report)
        except LoraLabError as error:  # what was measured is not lost with the disk
            return replace(report, findings=(*report.findings, Finding("not_saved", f"Not saved: {error}")))
        saved = Scalars("", "Saved", _SAVED, {"saved": entry.id})
        return replace(report, scalars=(*report.scalars, saved))


def _row(entry: Entry) -> dict[str, object]:
    report = entry.report
    groups = {} if report is None else {group.id: group.values for group in report.scalars}
    environment = groups.get("environment", {})
    return {
        "id": entry.id,
        "benchmark": None if report is None else report.command,
        "title": None if report is None else report.title,
        **{name: environment.get(name) for name in ("device", "lora_lab", "commit")},
        "path": str(entry.path),
        "error": entry.error,
    }
