"""What a session changes: files in, files and a receipt out."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

from lora_lab.errors import LoraLabError, quoted
from lora_lab.session.records import Fingerprints, Hashing, record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self, Unpack

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import InputRecord, Report
    from lora_lab.operations.options import MergeOptions
    from lora_lab.operations.replay import Recipe
    from lora_lab.operations.undo import Undo


_RESUMED: Final = ("merge", "unmerge", "swap")
_RENAMED: Final = {"from": "from_adapters", "to": "to_adapters"}


class How(TypedDict, total=False):
    """How adapters are, or were, added to a base.

    strengths : wᵢ, one for each adapter; none means 1 each
    dtype : float32, bfloat16, float16 or float64 of every weight; None keeps each weight's own
    rounding : ``nearest``, or ``stochastic`` with the session's seed
    modules : globs; none means all
    partial : leave modules out that the base lacks
    skip_saved_modules : leave whole modules out that an adapter brings
    saved_modules_from : name of the adapter whose whole modules win
    """

    strengths: Sequence[float]
    dtype: str | None
    rounding: str
    modules: Sequence[str]
    partial: bool
    skip_saved_modules: bool
    saved_modules_from: str | None


class Changing(ABC):
    """Merges, unmerges, swaps, verifies and replays what a session can open."""

    seed: int
    _cache_folder: Path | None

    @abstractmethod
    def adapter(self, locator: str) -> Adapter:
        """Open an adapter."""

    @abstractmethod
    def base(self, locator: str) -> Base:
        """Open a model."""

    @abstractmethod
    def open(self, locator: str) -> Adapter | Base:
        """Open whatever is there."""

    def merge(
        self,
        adapters: Sequence[str],
        *,
        base: str,
        output: str | Path,
        undo: str | Path | None = None,
        overwrite: bool = False,
        resume: bool = False,
        dry_run: bool = False,
        observer: Observer | None = None,
        **how: Unpack[How],
    ) -> Report:
        """Merge adapters into a base: W ← W + Σ wᵢ(W′ᵢ − W), streamed, rounded once, with a receipt.

        Parameters
        ----------
        adapters : locators
        base : locator of the model they were trained on
        output : the folder to appear
        undo : file to write that gives the base back without the base
        overwrite : replace `output` when it is there
        resume : go on with what an interrupted run of the same merge has finished
        dry_run : say what would be written, and write nothing
        how : strengths, dtype, rounding and more, see :class:`How`

        Raises
        ------
        LoraLabError
            something does not fit, and nothing was written; or the disk, or the observer, says no.
        """
        from lora_lab.formats.factors import FactorReader
        from lora_lab.operations.merge import merge

        if not adapters:
            raise LoraLabError("There is nothing to merge, expected at least one adapter.")
        opened = [self.adapter(locator) for locator in adapters]
        model = self.base(base)
        with self._hashing(*opened, model, skipped=dry_run) as hashing:
            return merge(
                opened,
                model,
                Path(output),
                reader=FactorReader(),
                options=self._options(how),
                inputs=hashing.records,
                undo=None if undo is None else Path(undo),
                overwrite=overwrite,
                resume=resume,
                dry_run=dry_run,
                observer=observer,
            )

    def unmerge(
        self,
        merged: str,
        *,
        output: str | Path,
        base: str | None = None,
        undo: str | Path | None = None,
        adapters: Sequence[str] = (),
        overwrite: bool = False,
        resume: bool = False,
        dry_run: bool = False,
        observer: Observer | None = None,
        **how: Unpack[How],
    ) -> Report:
        """Give back the base that a model was merged from.

        To the bit with the base itself, or with the undo file and the adapters; by subtraction with adapters alone,
        which is not exact and says how far off it may be.

        Parameters
        ----------
        merged : locator of the model
        output : the folder to appear
        base : locator of the base, which is checked to be behind the model
        undo : file that the merge wrote
        adapters : locators; with `undo` none means those that it names
        how : the merge was made, where adapters are subtracted; see :class:`How`

        Raises
        ------
        LoraLabError
            something does not fit, and nothing was written; or the disk, or the observer, says no.
        """
        from lora_lab.formats.factors import FactorReader
        from lora_lab.operations.unmerge import unmerge

        model = self.base(merged)
        kept = _opened(undo)
        opened = [self.adapter(locator) for locator in adapters or (kept.locators if kept else ())]
        behind = None if base is None else self.base(base)
        with self._hashing(*opened, model, behind, skipped=dry_run) as hashing:
            return unmerge(
                model,
                Path(output),
                base=behind,
                undo=kept,
                adapters=opened,
                reader=FactorReader(),
                options=self._options(how),
                inputs=hashing.records,
                overwrite=overwrite,
                resume=resume,
                dry_run=dry_run,
                observer=observer,
            )

    def swap(
        self,
        merged: str,
        *,
        from_adapters: Sequence[str],
        to_adapters: Sequence[str],
        output: str | Path,
        strengths_from: Sequence[float] = (),
        strengths_to: Sequence[float] = (),
        base: str | None = None,
        undo: str | Path | None = None,
        write_undo: str | Path | None = None,
        overwrite: bool = False,
        resume: bool = False,
        dry_run: bool = False,
        observer: Observer | None = None,
        **how: Unpack[How],
    ) -> Report:
        """Take adapters out of a merged model and put others in, in one pass over its weights.

        With the base, or the undo file of the merge, the bytes are those of a merge of `to_adapters` into the base;
        without, W ← W − Σ wᵢΔWᵢ + Σ vⱼΔWⱼ, which is not exact and says how far off it may be.

        Parameters
        ----------
        from_adapters, to_adapters : locators of what is in it, and of what shall be
        strengths_from, strengths_to : one for each of them; none means 1 each
        write_undo : file to write that undoes the swap down to the base; with `base` or `undo` alone
        base, undo : one of them makes it exact, see :meth:`unmerge`
        how : of both merges, but for the strengths; see :class:`How`

        Raises
        ------
        LoraLabError
            something does not fit, or the disk, or the observer, says no; nothing was written.
        """
        from lora_lab.formats.factors import FactorReader
        from lora_lab.operations.swap import swap

        model = self.base(merged)
        old = [self.adapter(locator) for locator in from_adapters]
        new = [self.adapter(locator) for locator in to_adapters]
        behind = None if base is None else self.base(base)
        with self._hashing(*old, *new, model, behind, skipped=dry_run) as hashing:
            return swap(
                model,
                old,
                new,
                Path(output),
                base=behind,
                undo=_opened(undo),
                write_undo=Path(write_undo) if write_undo else None,
                reader=FactorReader(),
                from_options=self._options({**how, "strengths": strengths_from}),
                options=self._options({**how, "strengths": strengths_to}),
                inputs=hashing.records,
                overwrite=overwrite,
                resume=resume,
                dry_run=dry_run,
                observer=observer,
            )

    def verify(
        self,
        merged: str,
        *,
        base: str | None = None,
        adapters: Sequence[str] = (),
        observer: Observer | None = None,
        **how: Unpack[How],
    ) -> Report:
        """Prove that a merged model is what it should be: hashes against its receipt, and the arithmetic itself.

        Parameters
        ----------
        merged : locator of the model, whoever made it
        base, adapters : locators; with them every tensor is compared with W + Σ wᵢ(W′ᵢ − W)
        how : the merge was made; not needed where its receipt is there; see :class:`How`

        Returns
        -------
        ``verdict`` True, False, or None where nothing could be established

        Raises
        ------
        LoraLabError
            something cannot be read or does not fit.
        """
        from lora_lab.formats.factors import FactorReader
        from lora_lab.operations.verify import verify

        model = self.base(merged)
        opened = [self.adapter(locator) for locator in adapters]
        behind = None if base is None else self.base(base)
        strengths = tuple(how.get("strengths", ()))
        is_told = any(value for name, value in how.items() if name != "strengths")
        with self._hashing(*opened, model, behind) as hashing:
            report = verify(
                model,
                base=behind,
                adapters=opened,
                strengths=strengths,
                options=self._options(how) if is_told else None,
                reader=FactorReader(),
                observer=observer,
            )
            return hashing.stamp(report, {})

    def replay(
        self,
        receipt: str | Path,
        *,
        output: str | Path,
        overwrite: bool = False,
        resume: bool = False,
        observer: Observer | None = None,
    ) -> Report:
        """Do again what a receipt tells of, and compare every file with it.

        Parameters
        ----------
        receipt : the file, or the folder that it stands in
        output : the folder to appear

        Returns
        -------
        ``verdict`` whether every file has the same bytes

        Raises
        ------
        LoraLabError
            an input is not what it was, and nothing was written; or the operation fails.
        """
        from lora_lab.operations.receipt import RECEIPT
        from lora_lab.operations.replay import replay

        place = Path(receipt)

        def run(recipe: Recipe, target: Path) -> Report:
            session = self._seeded(recipe.arguments.get("seed", self.seed))
            keywords = {_RENAMED.get(name, name): value for name, value in recipe.keywords.items()}
            if recipe.operation in _RESUMED:
                keywords["resume"] = resume
            again: Callable[..., Report] = getattr(session, recipe.operation)  # one of REPLAYED
            return again(**keywords, output=target, overwrite=overwrite, observer=observer)

        return replay(place / RECEIPT if place.is_dir() else place, Path(output), record=self._record, run=run)

    def _record(self, locator: str) -> InputRecord:
        return record_of(self.open(locator), is_whole=True, fingerprints=Fingerprints(self._cache_folder))

    def _hashing(self, *subjects: Adapter | Base | None, skipped: bool = False) -> Hashing:
        """Hash all that a receipt tells of, whole: each file once, as long as it stays as it is."""
        there = [] if skipped else [subject for subject in subjects if subject is not None]
        return Hashing(there, is_whole=True, fingerprints=Fingerprints(self._cache_folder))

    def _seeded(self, seed: int) -> Self:
        session = copy.copy(self)
        session.seed = seed
        return session

    def _options(self, how: How) -> MergeOptions:
        from lora_lab.linalg.rounding import Rounding
        from lora_lab.operations.options import MergeOptions, SavedModules, dtype_named

        rounding, dtype = how.get("rounding", "nearest"), how.get("dtype")
        if rounding not in list(Rounding):
            raise LoraLabError(f"The rounding is {quoted(rounding)}, expected one of: {', '.join(Rounding)}.")
        return MergeOptions(
            strengths=tuple(how.get("strengths", ())),
            dtype=dtype_named(dtype) if dtype else None,
            rounding=rounding,
            seed=self.seed,
            modules=tuple(how.get("modules", ())),
            is_partial=how.get("partial", False),
            saved_modules=SavedModules.SKIP if how.get("skip_saved_modules") else SavedModules.TAKE,
            saved_modules_from=how.get("saved_modules_from"),
        )


def _opened(undo: str | Path | None) -> Undo | None:
    from lora_lab.operations.undo import open_undo

    return None if undo is None else open_undo(undo)
