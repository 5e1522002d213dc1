"""A session: what a person allows, what is installed, and everything that can be asked."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lora_lab.domain.base import Base
from lora_lab.domain.parameters import parse_parameters
from lora_lab.domain.progress import Unwatched
from lora_lab.domain.report import Finding
from lora_lab.errors import LoraLabError, PluginError, quoted
from lora_lab.extension.contracts import AnalysisContext, Need, OnProcessor
from lora_lab.extension.registry import Registry, load_registry
from lora_lab.formats.opening import is_configuration
from lora_lab.session import listing
from lora_lab.session.arranging import Arranging
from lora_lab.session.extracting import Extracting
from lora_lab.session.guarded import attributed, checked_report
from lora_lab.session.inspection import inspect_adapter, inspect_base
from lora_lab.session.library import Library, scan_repository
from lora_lab.session.measuring import Measuring
from lora_lab.session.opening import Opening
from lora_lab.session.placing import InMebibytes, existing
from lora_lab.session.pulling import Pulling
from lora_lab.session.pushing import Pushing
from lora_lab.session.records import Hashing
from lora_lab.session.results import Results, code_stamp, with_store
from lora_lab.sources.locators import parse
from lora_lab.storage.folders import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.library import LibraryEntry
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report
    from lora_lab.extension.contracts import Analysis, ArrayStore

# Every left-singular vector of a base of a billion parameters, in float32, and as much again.
_ARRAY_BYTES = 4 << 30


class Session(Opening, Arranging, Extracting, Measuring, Pulling, Pushing):
    """Opens, lists and analyses adapters and bases.

    Parameters
    ----------
    device : auto, cpu, cuda, cuda:N or mps; where analyses compute
    seed : of everything that draws at random
    offline : never ask the Hub, use what is cached
    allow_pickle : convert ``.bin`` files, weights only, in a process of their own
    follow_symlinks : read files that a link leads to outside an adapter's folder
    alpha : for adapters whose configuration does not say
    cache : remember listings and results of unchanged files
    plugins : load plugins from outside
    send_token_to : hosts beside the Hub's own that its token may be sent to, over https

    Examples
    --------
    >>> session = Session()
    >>> "spectrum" in session.registry.analyses
    True
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        seed: int = 0,
        offline: bool = False,
        allow_pickle: bool = False,
        follow_symlinks: bool = False,
        alpha: float | None = None,
        cache: bool = True,
        plugins: bool = True,
        send_token_to: Sequence[str] = (),
    ) -> None:
        if alpha is not None and not math.isfinite(alpha):
            raise LoraLabError(f"alpha is {alpha}, expected a finite number.", hint="A usual value is the rank.")
        self.device = device
        self.seed = seed
        self.offline = offline
        self.allow_pickle = allow_pickle
        self.follow_symlinks = follow_symlinks
        self.alpha = alpha
        self.load_plugins = plugins
        self.send_token_to = tuple(send_token_to)
        self._cache_folder = cache_folder() if cache else None

    @cached_property
    def registry(self) -> Registry:
        """What is installed; loaded on first use."""
        from lora_lab.analyses import plugin as analyses
        from lora_lab.benchmarks import plugin as benchmarks
        from lora_lab.formats import plugin as formats
        from lora_lab.methods import plugin as methods
        from lora_lab.reports import plugin as reports

        builtins = {
            "formats": formats,
            "analyses": analyses,
            "methods": methods,
            "benchmarks": benchmarks,
            "reports": reports,
        }
        return load_registry(builtins, load_plugins=self.load_plugins)

    # Looking

    def scan(self, locator: str = ".") -> Iterator[LibraryEntry]:
        """List what a folder holds, one entry at a time, from headers alone; a broken one carries its reason."""
        found = parse(locator)
        if not found.is_local:
            return scan_repository(self, found)
        return Library(self, existing(found), self._cache_folder).scan()

    def ls(self, locator: str = ".") -> Report:
        """List what a folder holds."""
        return listing.ls_report(locator, tuple(self.scan(locator)))

    def inspect(self, locator: str, *, modules: Sequence[str] = (), observer: Observer | None = None) -> Report:
        """Say everything that an adapter's or a base's own files say; no torch is needed.

        Parameters
        ----------
        modules : globs that restrict the rows; none means all
        """
        subject = self.open(locator, observer=InMebibytes(observer))
        return inspect_base(subject, modules) if isinstance(subject, Base) else inspect_adapter(subject, modules)

    def spectrum(self, locator: str, *, modules: Sequence[str] = (), observer: Observer | None = None) -> Report:
        """Compute the singular values of every module's ΔW, and what follows from them."""
        return self.analyze("spectrum", [locator], modules=modules, observer=observer)

    def analyze(
        self,
        id: str,  # noqa: A002 - the field's own name
        locators: Sequence[str],
        *,
        base: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        modules: Sequence[str] = (),
        observer: Observer | None = None,
    ) -> Report:
        """Run any analysis, a plugin's too.

        Parameters
        ----------
        id : of an entry of ``registry.analyses``
        locators : the subjects
        base : locator of the base model
        parameters : values, or texts as a person types them
        modules : globs; none means all
        observer : told of progress and of rows as they are ready

        Raises
        ------
        LoraLabError
            no such analysis, too few or too many inputs, a base missing, or what the analysis itself refuses.
        PluginError
            a plugin's analysis failed.
        """
        analysis = self._analysis(id)
        _check_inputs(analysis, locators, base)
        values = parse_parameters(analysis.parameters, parameters or {})
        fetching = InMebibytes(observer)
        subjects = tuple(self._subject(analysis, locator, fetching) for locator in locators)
        base_model = self.base(base, observer=fetching) if base is not None else None
        everything = (*subjects, *([base_model] if base_model else []))
        owner = self.registry.plugin_of("analyses", id)
        results = Results(self._cache_folder, f"{owner.origin} {code_stamp(type(analysis).__module__)}")
        key = results.key(id, everything, values, modules, self.device, self.seed)
        remembered = results.get(key)
        if remembered is not None:
            return with_store(remembered, self._store())
        from lora_lab.formats.factors import FactorReader

        context = AnalysisContext(
            subjects=subjects,
            reader=FactorReader(),
            base=base_model,
            parameters=dict(values),
            modules=tuple(modules),
            device=self._device_for(analysis),
            seed=self.seed,
            observer=observer or Unwatched(),
            store=self._store(),
        )
        with Hashing(everything) as hashing:
            with attributed("analysis", id, owner):
                report = analysis.run(context)
            report = hashing.stamp(checked_report(report, "analysis", id, owner), values)
        report = replace(report, findings=(*report.findings, *self._device_findings(analysis)))
        results.put(key, report)
        return report

    def report(
        self,
        locators: Sequence[str],
        *,
        output: Path,
        base: str | None = None,
        figure: str | None = None,
        modules: Sequence[str] = (),
        overwrite: bool = False,
        observer: Observer | None = None,
    ) -> Report:
        """Write a page about adapters, or one of its figures, and say what was written.

        Parameters
        ----------
        locators : of one adapter or more
        output : ``.html`` for the page; ``.png``, ``.svg`` or ``.pdf`` for one figure
        base : locator of the base model, for what is said against its weights
        figure : name of the figure
        modules : globs; none means all
        overwrite : replace `output` when it is there

        Raises
        ------
        LoraLabError
            there is something at `output`, its ending is unknown, matplotlib is missing, or nothing can be computed.
        """
        from lora_lab.session.reporting import write_report

        return write_report(
            self,
            locators,
            base=base,
            output=output,
            figure=figure,
            modules=modules,
            overwrite=overwrite,
            observer=observer,
        )

    def _device_findings(self, analysis: Analysis) -> tuple[Finding, ...]:
        if not isinstance(analysis, OnProcessor) or self.device in ("auto", "cpu"):
            return ()
        said = f"{analysis.title} computes on the processor; the device {quoted(self.device)} is of no use to it."
        return (Finding("on_processor", said),)

    def _store(self) -> ArrayStore | None:
        """Where decompositions of bases are kept."""
        if self._cache_folder is None:
            return None
        from lora_lab.storage.arrays import ArrayCache

        return ArrayCache(self._cache_folder / "arrays", limit_bytes=_ARRAY_BYTES)

    def _device_for(self, analysis: Analysis) -> str:
        """The device that `analysis` computes on; torch is loaded to find it."""
        if isinstance(analysis, OnProcessor):
            return "cpu"
        from lora_lab.linalg.device import resolve_device

        return resolve_device(self.device)

    def _analysis(self, id: str) -> Analysis:  # noqa: A002
        try:
            return self.registry.analyses[id]
        except KeyError:
            known = ", ".join(self.registry.analyses)
            raise LoraLabError(
                f"There is no analysis {quoted(id)}, expected one of: {known}.", hint="lora-lab analyses lists them."
            ) from None

    def _subject(self, analysis: Analysis, locator: str, observer: Observer | None) -> Adapter | Base:
        if not analysis.takes_models:
            return self.adapter(locator, observer=observer)
        found = parse(locator)
        is_alone = found.is_local and is_configuration(existing(found))
        return self.base(locator, observer=observer) if is_alone else self.open(locator, observer=observer)

    # What is installed

    def export(self, report: Report, exporter: str) -> bytes:
        """Write `report` as the file that an installed exporter makes of it.

        Parameters
        ----------
        exporter : id of an entry of ``registry.exporters``

        Raises
        ------
        LoraLabError
            there is no such exporter.
        PluginError
            a plugin's exporter failed.
        """
        self.require_exporter(exporter)
        owner = self.registry.plugin_of("exporters", exporter)
        with attributed("exporter", exporter, owner):
            content: object = self.registry.exporters[exporter].export(report)
            if not isinstance(content, bytes):
                raise PluginError(
                    f"The exporter {quoted(exporter)} of the plugin {quoted(owner.name)} returned "
                    f"{quoted(type(content).__name__)}, expected bytes.",
                    hint="Tell the plugin's author.",
                )
        return content

    def require_exporter(self, exporter: str) -> None:
        """Refuse the name of an exporter that is not installed, before work is done for it."""
        if exporter not in self.registry.exporters:
            known = ", ".join(self.registry.exporters)
            raise LoraLabError(f"There is no exporter {quoted(exporter)}, expected one of: {known}.")

    def plugins(self) -> Report:
        """List every plugin, what it adds, where it comes from and whether it loaded."""
        return listing.plugins_report(self.registry)

    def analyses(self) -> Report:
        """List every analysis with its parameters."""
        return listing.analyses_report(self.registry)

    def methods(self) -> Report:
        """List every method of combining with its parameters."""
        return listing.methods_report(self.registry)

    def strategies(self) -> Report:
        """List every strategy of swapping."""
        return listing.strategies_report(self.registry)


def _check_inputs(analysis: Analysis, locators: Sequence[str], base: str | None) -> None:
    fewest, most = analysis.subjects
    if not fewest <= len(locators) <= most:
        expected = str(fewest) if fewest == most else f"{fewest} to {most}"
        got = "one input" if len(locators) == 1 else f"{len(locators)} inputs"
        raise LoraLabError(f"The analysis {quoted(analysis.id)} got {got}, expected {expected}.")
    if analysis.base is Need.REQUIRED and base is None:
        raise LoraLabError(
            f"The analysis {quoted(analysis.id)} needs the base model, and none was given.", hint="Pass --base BASE."
        )
    if analysis.base is Need.NO and base is not None:
        raise LoraLabError(f"The analysis {quoted(analysis.id)} takes no base model, and --base was given.")
