"""How a session has what it opens looked at: any analysis, of files that are here or read in parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_lab.domain.parameters import parse_parameters
from lora_lab.domain.progress import Unwatched
from lora_lab.domain.report import Finding
from lora_lab.errors import LoraLabError, quoted
from lora_lab.extension.ahead import CountsOperations, ReadsAhead
from lora_lab.extension.contracts import AnalysisContext, Need, OnProcessor
from lora_lab.formats.opening import is_configuration
from lora_lab.session.guarded import attributed, checked_report
from lora_lab.session.partial import foretold, partial_findings, parts_of, reading
from lora_lab.session.placing import InMebibytes, existing
from lora_lab.session.records import Hashing, record_of
from lora_lab.session.results import Results, code_stamp, with_store
from lora_lab.sources.locators import parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import Analysis, ArrayStore
    from lora_lab.extension.registry import Registry
    from lora_lab.sources.kept import Kept
    from lora_lab.sources.remote import RemoteModel

# Every left-singular vector of a base of a billion parameters, in float32, and as much again.
_ARRAY_BYTES = 4 << 30


class Looking(ABC):
    """Analyses what a session can open."""

    device: str
    seed: int
    _cache_folder: Path | None
    _remote_models: dict[str, RemoteModel]  # those that were opened, by place
    _kept_ranges: Kept | None  # what the last analysis fetched of them

    @property
    @abstractmethod
    def registry(self) -> Registry:
        """What is installed."""

    @abstractmethod
    def adapter(self, locator: str, *, observer: Observer | None = None) -> Adapter:
        """Open an adapter."""

    @abstractmethod
    def base(self, locator: str, *, whole: bool = False, observer: Observer | None = None) -> Base:
        """Open a model."""

    @abstractmethod
    def open(self, locator: str, *, whole: bool = False, observer: Observer | None = None) -> Adapter | Base:
        """Open whatever is there."""

    def analyze(
        self,
        id: str,  # noqa: A002 - the field's own name
        locators: Sequence[str],
        *,
        base: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        modules: Sequence[str] = (),
        dry_run: bool = False,
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
        dry_run : say what would be fetched of models that are not on this machine, and compute nothing
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
        results = self._results(analysis)
        key = results.key(id, everything, values, modules, self.device, self.seed)
        remembered = results.get(key)
        if remembered is not None:
            return foretold(id, analysis.title) if dry_run else with_store(remembered, self._store())
        device = "cpu" if dry_run else self._device_for(analysis, subjects, modules)
        context = self._context(subjects, base_model, values, modules, device, observer or Unwatched())
        parts = parts_of(everything, self._remote_models)
        if dry_run:
            records = tuple(record_of(subject, headers_only=True, remote=parts) for subject in everything)
            return foretold(id, analysis.title, parts, self._ahead(analysis, context, parts), records)
        report = self._done(analysis, context, parts)
        results.put(key, report)
        return report

    def _context(
        self,
        subjects: tuple[Adapter | Base, ...],
        base: Base | None,
        values: Mapping[str, Any],
        modules: Sequence[str],
        device: str,
        observer: Observer,
    ) -> AnalysisContext:
        """What an analysis works on, with a reader of what is on this machine."""
        from lora_lab.formats.factors import FactorReader

        return AnalysisContext(
            subjects=subjects,
            reader=FactorReader(),
            base=base,
            parameters=values,
            modules=tuple(modules),
            device=device,
            seed=self.seed,
            observer=observer,
            store=self._store(),
        )

    def _results(self, analysis: Analysis) -> Results:
        """What is remembered of `analysis` as its code is now."""
        origin = self.registry.plugin_of("analyses", analysis.id).origin
        return Results(self._cache_folder, f"{origin} {code_stamp(type(analysis).__module__)}")

    def _done(self, analysis: Analysis, context: AnalysisContext, parts: Sequence[RemoteModel]) -> Report:
        """Run `analysis`, while what it reads is hashed, or fetched where it is of `parts`."""
        from lora_lab.formats.factors import FactorReader

        owner = self.registry.plugin_of("analyses", analysis.id)
        ahead = self._ahead(analysis, context, parts)
        folder = None if self._cache_folder is None else self._cache_folder / "spool"
        everything = (*context.subjects, *([context.base] if context.base else []))
        with Hashing(everything, remote=parts) as hashing:
            with (
                reading(parts, ahead or (), context.observer, folder, self._kept_ranges) as (files, telling),
                attributed("analysis", analysis.id, owner),
            ):
                report = analysis.run(replace(_own(context), reader=FactorReader(files), observer=telling))
            report = hashing.stamp(checked_report(report, "analysis", analysis.id, owner), context.parameters)
        weights = partial_findings(parts) if ahead is None or ahead else ()  # of headers alone there is nothing to say
        return replace(report, findings=(*report.findings, *self._device_findings(analysis), *weights))

    def _ahead(
        self, analysis: Analysis, context: AnalysisContext, parts: Sequence[RemoteModel]
    ) -> Sequence[TensorRef] | None:
        """The tensors that `analysis` will read, where some of them have to be fetched; None where it does not say."""
        if not parts or not isinstance(analysis, ReadsAhead):
            return None
        with attributed("analysis", analysis.id, self.registry.plugin_of("analyses", analysis.id)):
            return analysis.reads(_own(context))

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

    def _device_for(self, analysis: Analysis, subjects: Sequence[Adapter | Base], modules: Sequence[str]) -> str:
        """The device that `analysis` computes on; torch is loaded to find it."""
        if isinstance(analysis, OnProcessor):
            return "cpu"
        from lora_lab.linalg.device import DEVICE_PAYS_OPERATIONS, resolve_device

        if self.device == "auto" and isinstance(analysis, CountsOperations):
            with attributed("analysis", analysis.id, self.registry.plugin_of("analyses", analysis.id)):
                if analysis.operations(subjects, modules) < DEVICE_PAYS_OPERATIONS:
                    return "cpu"
        return resolve_device(self.device)

    def _analysis(self, id: str) -> Analysis:  # noqa: A002
        try:
            return self.registry.analyses[id]
        except KeyError:
            known = ", ".join(self.registry.analyses)
            raise LoraLabError(
                f"There is no analysis {quoted(id)}, expected one of: {known}.", hint="lora-lab analyses lists them."
            ) from None

    def _subject(self, analysis: Analysis, locator: str, observer: Observer) -> Adapter | Base:
        """An adapter, or where `analysis` takes models whatever is there, a configuration alone too."""
        if not analysis.takes_models:
            return self.adapter(locator, observer=observer)
        found = parse(locator)
        is_alone = found.is_local and is_configuration(existing(found))
        return self.base(locator, observer=observer) if is_alone else self.open(locator, observer=observer)


def _own(context: AnalysisContext) -> AnalysisContext:
    """`context` with parameters that may be changed without a trace."""
    return replace(context, parameters=dict(context.parameters))


def _check_inputs(analysis: Analysis, locators: Sequence[str], base: str | None) -> None:
    fewest, most = analysis.subjects
    if not fewest <= len(locators) <= most:
        expected = str(fewest) if fewest == most else f"{fewest} to {most}"
        got = "one input" if len(locators) == 1 else f"{len(locators)} inputs"
        raise LoraLabError(
            f"The analysis {quoted(analysis.id)} got {got}, expected {expected}.",
            hint="lora-lab ls lists the adapters and models of a folder.",
        )
    if analysis.base is Need.REQUIRED and base is None:
        raise LoraLabError(
            f"The analysis {quoted(analysis.id)} needs the base model, and none was given.", hint="Pass --base BASE."
        )
    if analysis.base is Need.NO and base is not None:
        raise LoraLabError(f"The analysis {quoted(analysis.id)} takes no base model, and --base was given.")
