"""How a session makes adapters out of adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from lora_lab.errors import LoraLabError, quoted
from lora_lab.extension.registry import BUILT_IN
from lora_lab.session.records import Hashing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Unpack

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report
    from lora_lab.extension.contracts import MergeMethod
    from lora_lab.extension.registry import Registry
    from lora_lab.operations.combine_options import CombineOptions


class Cut(TypedDict, total=False):
    """How much is kept, and of which type; at most one of energy, error and parameters.

    rank : the most of every module
    energy : share in (0, 1] of ‖D‖² that every module keeps
    error : relative error ‖D − ΔW‖/‖D‖ that every module may have
    parameters : of all modules together, divided so that the least is lost
    dtype : float32, bfloat16, float16 or float64; None is the widest of the inputs
    seed : of everything that draws; None is the session's
    modules : globs; none means all
    """

    rank: int | None
    energy: float | None
    error: float | None
    parameters: int | None
    dtype: str | None
    seed: int | None
    modules: Sequence[str]


class Arranging(ABC):
    """Combines and resizes what a session can open."""

    seed: int

    @property
    @abstractmethod
    def registry(self) -> Registry:
        """What is installed."""

    @abstractmethod
    def adapter(self, locator: str) -> Adapter:
        """Open an adapter."""

    def combine(
        self,
        adapters: Sequence[str],
        *,
        output: str | Path,
        method: str = "linear",
        strengths: Sequence[float] = (),
        settings: Mapping[str, Any] | None = None,
        average_saved_modules: bool = False,
        skip_saved_modules: bool = False,
        saved_modules_from: str | None = None,
        overwrite: bool = False,
        dry_run: bool = False,
        observer: Observer | None = None,
        **cut: Unpack[Cut],
    ) -> Report:
        """Make one adapter out of several, by the change of weights that each of them is.

        Parameters
        ----------
        adapters : locators
        output : the folder to appear, as PEFT reads it
        method : of ``registry.methods``
        strengths : wᵢ, one for each adapter; none means 1 each, a negative one subtracts
        settings : parameters of the method, values or texts as a person types them
        average_saved_modules, skip_saved_modules, saved_modules_from : what becomes of modules that several bring whole
        overwrite : replace `output` when it is there
        dry_run : compute everything, and write nothing
        cut : rank, energy, error, parameters, dtype, seed, modules, see :class:`Cut`

        Raises
        ------
        LoraLabError
            something does not fit, or the disk, or the observer, says no; nothing was written.
        """
        from lora_lab.operations.combine_options import Whole

        if average_saved_modules and skip_saved_modules:
            raise LoraLabError("Saved modules are either averaged or left out, and both were asked for.")
        whole = Whole.AVERAGE if average_saved_modules else Whole.SKIP if skip_saved_modules else Whole.REFUSE
        options = self._cut(cut, strengths=tuple(strengths), whole=whole, saved_modules_from=saved_modules_from)
        return self._combine(
            adapters,
            self._method(method),
            Path(output),
            options,
            operation="combine",
            settings=settings,
            overwrite=overwrite,
            dry_run=dry_run,
            observer=observer,
        )

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
            self._method("linear"),
            Path(output),
            self._cut(cut),
            operation="resize",
            overwrite=overwrite,
            dry_run=dry_run,
            observer=observer,
        )

    def _combine(
        self,
        adapters: Sequence[str],
        method: MergeMethod,
        output: Path,
        options: CombineOptions,
        *,
        operation: str,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool,
        dry_run: bool,
        observer: Observer | None,
    ) -> Report:
        from lora_lab.formats.factors import FactorReader
        from lora_lab.operations.combine import CombineTarget, combine
        from lora_lab.session.guarded import GuardedMethod

        opened = [self.adapter(locator) for locator in adapters]
        owner = self.registry.plugin_of("methods", method.id)
        plugins = {owner.distribution: owner.version} if owner.distribution else {}
        with Hashing([] if dry_run else opened) as hashing:
            return combine(
                opened,
                method if owner.origin == BUILT_IN else GuardedMethod(method, owner),
                CombineTarget(output, overwrite, dry_run, inputs=hashing.records, plugins=plugins),
                reader=FactorReader(),
                options=options,
                parameters=settings,
                operation=operation,
                observer=observer,
            )

    def _method(self, name: str) -> MergeMethod:
        found = self.registry.methods.get(name)
        if found is None:
            known = ", ".join(self.registry.methods)
            raise LoraLabError(
                f"There is no method {quoted(name)}, expected one of: {known}.",
                hint="lora-lab methods says what each does.",
            )
        return found

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
            **more,
        )
