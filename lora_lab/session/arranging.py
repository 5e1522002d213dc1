"""How a session makes adapters out of adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from lora_lab.domain.adapter import Adapter
from lora_lab.errors import CompatibilityError, LoraLabError, quoted
from lora_lab.session.devices import told_of_device
from lora_lab.session.placing import InMebibytes
from lora_lab.session.records import Fingerprints, Hashing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Unpack

    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report
    from lora_lab.extension.contracts import MergeMethod
    from lora_lab.extension.registry import Registry
    from lora_lab.operations.combine_options import CombineOptions
    from lora_lab.sources.remote import RemoteModel


class Cut(TypedDict, total=False):
    """How much is kept, and of which type; at most one of energy, error and parameters.

    rank : the most of every module
    energy : share in (0, 1] of ‖D‖² that every module keeps
    error : relative error ‖D − ΔW‖/‖D‖ that every module may have
    parameters : of all modules together, divided so that the least is lost
    dtype : float32, bfloat16, float16 or float64; None is the widest of the inputs
    seed : of everything that draws; None is the session's
    modules : globs; none means all
    base : locator of the model behind adapters whose change is known with it alone: DoRA, PiSSA
    """

    rank: int | None
    energy: float | None
    error: float | None
    parameters: int | None
    dtype: str | None
    seed: int | None
    modules: Sequence[str]
    base: str | None


class Whole(TypedDict, total=False):
    """What becomes of modules that several adapters bring whole, such as a classifier; refused without a word.

    average_saved_modules : the mean, weighed by the strengths
    skip_saved_modules : none
    saved_modules_from : those of the adapter of this name or locator
    """

    average_saved_modules: bool
    skip_saved_modules: bool
    saved_modules_from: str | None


class Combining(Cut, Whole, total=False):
    """How much is kept of ΔW, and what of whole modules."""


class Arranging(ABC):
    """Combines and resizes what a session can open."""

    seed: int
    device: str
    _cache_folder: Path | None

    @property
    @abstractmethod
    def registry(self) -> Registry:
        """What is installed."""

    @abstractmethod
    def open(self, locator: str, *, observer: Observer | None = None) -> Adapter | Base:
        """Open whatever is there."""

    @abstractmethod
    def _whole_base(self, locator: str, *, dry_run: bool, observer: Observer | None) -> Base:
        """Open a model all of whose files are on this machine; a dry run fetches none."""

    @abstractmethod
    def words(self) -> dict[str, Any]:
        """What was said for opening inputs, as receipts keep it."""

    def combine(
        self,
        adapters: Sequence[str],
        *,
        output: str | Path,
        method: str = "linear",
        strengths: Sequence[float] = (),
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        dry_run: bool = False,
        observer: Observer | None = None,
        **how: Unpack[Combining],
    ) -> Report:
        """Make one adapter out of several, by the change of weights that each of them is.

        Parameters
        ----------
        adapters : locators
        output : the folder to appear, as PEFT reads it
        method : of ``registry.methods``
        strengths : wᵢ, one for each adapter; none means 1 each, a negative one subtracts
        settings : parameters of the method, values or texts as a person types them
        overwrite : replace `output` when it is there
        dry_run : compute everything, and write nothing
        how : rank, energy, error, parameters, dtype, seed, modules, see :class:`Cut`; whole modules, see
            :class:`Whole`

        Raises
        ------
        LoraLabError
            something does not fit, or the disk, or the observer, says no; nothing was written.
        """
        options = self._options_of(how, strengths)
        return self._combine(
            adapters,
            method,
            Path(output),
            options,
            how,
            operation="combine",
            settings=settings,
            overwrite=overwrite,
            dry_run=dry_run,
            observer=observer,
        )

    def sweep(
        self,
        adapters: Sequence[str],
        *,
        output: str | Path,
        strengths: Sequence[Sequence[float]],
        method: str = "linear",
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        dry_run: bool = False,
        observer: Observer | None = None,
        **how: Unpack[Combining],
    ) -> Report:
        """Combine the same adapters with several sets of strengths: one output each, all of them or none.

        Parameters
        ----------
        output : stem of the folders to appear: ``mixed`` becomes ``mixed-0.7-0.3``; each is what :meth:`combine` makes
        strengths : sets of one strength for each adapter
        method, settings, overwrite, dry_run, how : as of :meth:`combine`

        Returns
        -------
        one row for each output: its ranks, its size, and what it lost; the observer is told of rows as they are ready

        Raises
        ------
        LoraLabError
            as :meth:`combine`, of any of them.
        """
        from lora_lab.formats.factors import FactorReader
        from lora_lab.operations.combine import CombineTarget
        from lora_lab.operations.sweep import sweep

        chosen, plugins = self._method(method)
        opened = self._opened(adapters, observer)
        behind = self._behind(how, observer, dry_run=dry_run)
        with self._hashed(*opened, behind, is_dry=dry_run) as hashing:
            report = sweep(
                opened,
                chosen,
                CombineTarget(Path(output), overwrite, dry_run, inputs=hashing.records, plugins=plugins),
                strengths,
                reader=FactorReader(),
                options=self._options_of(how, ()),
                parameters=settings,
                base=behind,
                observer=observer,
            )
        return told_of_device(report, self.device, "combine")

    def resize(
        self,
        adapter: str,
        *,
        output: str | Path,
        overwrite: bool = False,
        dry_run: bool = False,
        observer: Observer | None = None,
        **cut: Unpack[Cut],
    ) -> Report:
        """Make the best adapter of lower rank out of one, with the error that it costs in every module.

        Parameters
        ----------
        adapter : locator
        output : the folder to appear, as PEFT reads it
        overwrite : replace `output` when it is there
        dry_run : compute everything, and write nothing
        cut : rank, energy, error, parameters, dtype, seed, modules, see :class:`Cut`

        Raises
        ------
        LoraLabError
            nothing says how far to go, or as :meth:`combine`.
        """
        if not any(cut.get(name) is not None for name in ("rank", "energy", "error", "parameters")):
            raise LoraLabError(
                "Nothing says what the rank shall be, expected a rank, an energy, an error or a number of parameters.",
                hint="For example: --energy 0.9",
            )
        return self._combine(
            [adapter],
            "linear",
            Path(output),
            self._cut(cut),
            cut,
            operation="resize",
            overwrite=overwrite,
            dry_run=dry_run,
            observer=observer,
        )

    def _combine(
        self,
        adapters: Sequence[str],
        method: str,
        output: Path,
        options: CombineOptions,
        cut: Cut,
        *,
        operation: str,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool,
        dry_run: bool,
        observer: Observer | None,
    ) -> Report:
        from lora_lab.formats.factors import FactorReader
        from lora_lab.operations.combine import CombineTarget, combine

        chosen, plugins = self._method(method)
        opened = self._opened(adapters, observer)
        behind = self._behind(cut, observer, dry_run=dry_run)
        with self._hashed(*opened, behind, is_dry=dry_run) as hashing:
            report = combine(
                opened,
                chosen,
                CombineTarget(output, overwrite, dry_run, inputs=hashing.records, plugins=plugins),
                reader=FactorReader(),
                options=options,
                parameters=settings,
                operation=operation,
                base=behind,
                observer=observer,
            )
        return told_of_device(report, self.device, operation)

    def _opened(self, locators: Sequence[str], observer: Observer | None) -> list[Adapter]:
        opened = []
        for locator in locators:
            found = self.open(locator, observer=InMebibytes(observer))
            if not isinstance(found, Adapter):
                raise CompatibilityError(
                    f"{quoted(locator)} is a full model, expected an adapter: whole weights are not added up here "
                    "(task arithmetic on bases).",
                    hint="lora-lab extract BASE FINETUNED -o OUT makes an adapter of it, which can be combined.",
                )
            opened.append(found)
        return opened

    def _behind(self, cut: Cut, observer: Observer | None, *, dry_run: bool = False) -> Base | None:
        locator = cut.get("base")
        if locator is None:
            return None
        return self._whole_base(locator, dry_run=dry_run, observer=InMebibytes(observer))

    def _hashed(
        self, *subjects: Adapter | Base | None, is_dry: bool = False, remote: Sequence[RemoteModel] = ()
    ) -> Hashing:
        """Hash all that a receipt tells of, whole, as a replay does; the headers for a dry run, and of `remote`."""
        there = [subject for subject in subjects if subject is not None]
        known = Fingerprints(self._cache_folder)
        return Hashing(there, headers_only=is_dry, is_whole=True, fingerprints=known, remote=remote)

    def _method(self, name: str) -> tuple[MergeMethod, Mapping[str, str]]:
        """The method, a plugin's guarded, and the version of the distribution that brings it."""
        from lora_lab.session.guarded import guarded_method

        found = self.registry.methods.get(name)
        if found is None:
            known = ", ".join(self.registry.methods)
            raise LoraLabError(
                f"There is no method {quoted(name)}, expected one of: {known}.",
                hint="lora-lab methods says what each does.",
            )
        owner = self.registry.plugin_of("methods", name)
        plugins = {owner.distribution: owner.version} if owner.distribution else {}
        return guarded_method(found, owner), plugins

    def _options_of(self, how: Combining, strengths: Sequence[float]) -> CombineOptions:
        from lora_lab.operations.combine_options import Whole as Choice

        averages, skips = how.get("average_saved_modules", False), how.get("skip_saved_modules", False)
        if averages and skips:
            raise LoraLabError("Saved modules are either averaged or left out, and both were asked for.")
        whole = Choice.AVERAGE if averages else Choice.SKIP if skips else Choice.REFUSE
        return self._cut(how, strengths=tuple(strengths), whole=whole, saved_modules_from=how.get("saved_modules_from"))

    def _cut(self, cut: Cut, **more: Any) -> CombineOptions:
        from lora_lab.operations.combine_options import CombineOptions
        from lora_lab.operations.options import dtype_named

        dtype, seed = cut.get("dtype"), cut.get("seed")
        return CombineOptions(
            rank=cut.get("rank"),
            energy=cut.get("energy"),
            error=cut.get("error"),
            parameters=cut.get("parameters"),
            dtype=dtype_named(dtype) if dtype else None,
            seed=self.seed if seed is None else seed,
            modules=tuple(cut.get("modules", ())),
            words=self.words(),
            **more,
        )
