"""What a session changes: files in, files and a receipt out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from lora_lab.errors import LoraLabError, quoted
from lora_lab.session.records import Fingerprints, Hashing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    import torch

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report
    from lora_lab.operations.options import MergeOptions
    from lora_lab.operations.undo import Undo


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
    """Merges, unmerges and swaps what a session can open."""

    seed: int
    device: str
    _cache_folder: Path | None

    @abstractmethod
    def adapter(self, locator: str, *, observer: Observer | None = None) -> Adapter:
        """Open an adapter."""

    @abstractmethod
    def base(self, locator: str, *, whole: bool = False, observer: Observer | None = None) -> Base:
        """Open a model."""

    @abstractmethod
    def _whole_base(self, locator: str, *, dry_run: bool, observer: Observer | None) -> Base:
        """Open a model all of whose files are on this machine; a dry run fetches none."""

    @abstractmethod
    def _whole_bases(self, locators: Sequence[str], *, dry_run: bool, observer: Observer | None) -> list[Base]:
        """Open models all of whose files are on this machine; a dry run fetches none."""

    @abstractmethod
    def open(self, locator: str, *, whole: bool = False, observer: Observer | None = None) -> Adapter | Base:
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
        allow_nonfinite: bool = False,
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
        allow_nonfinite : let NaN and infinity through, in weights and in factors; their figures are undefined
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
        opened = [self.adapter(locator, observer=observer) for locator in adapters]
        model = self._whole_base(base, dry_run=dry_run, observer=observer)
        with self._hashing(*opened, model, is_dry=dry_run) as hashing:
            return merge(
                opened,
                model,
                Path(output),
                reader=FactorReader(allow_nonfinite=allow_nonfinite),
                options=self._options(how, allow_nonfinite=allow_nonfinite),
                inputs=hashing.records,
                undo=None if undo is None else Path(undo),
                overwrite=overwrite,
                resume=resume,
                dry_run=dry_run,
                observer=observer,
            )

    def merged_state_dict(
        self,
        adapters: Sequence[str],
        *,
        base: str,
        device: str = "cpu",
        allow_nonfinite: bool = False,
        observer: Observer | None = None,
        **how: Unpack[How],
    ) -> dict[str, torch.Tensor]:
        """Merge adapters into a base in memory: the very bits that :meth:`merge` writes, by tensor name.

        Parameters
        ----------
        device : where the tensors are wanted
        allow_nonfinite : as of :meth:`merge`
        how : strengths, dtype, rounding and more, see :class:`How`

        Raises
        ------
        LoraLabError
            something does not fit, or the observer says no.
        """
        from lora_lab.formats.factors import FactorReader
        from lora_lab.operations.in_memory import merged_state_dict

        opened = [self.adapter(locator, observer=observer) for locator in adapters]
        options = self._options(how, allow_nonfinite=allow_nonfinite)
        model = self.base(base, whole=True, observer=observer)
        reader = FactorReader(allow_nonfinite=allow_nonfinite)
        return merged_state_dict(opened, model, reader=reader, options=options, device=device, observer=observer)

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

        model, behind = self._model_and_base(merged, base, dry_run=dry_run, observer=observer)
        kept = _opened(undo)
        opened = [self.adapter(locator, observer=observer) for locator in adapters or (kept.locators if kept else ())]
        with self._hashing(*opened, model, behind, is_dry=dry_run) as hashing:
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

        model, behind = self._model_and_base(merged, base, dry_run=dry_run, observer=observer)
        old = [self.adapter(locator, observer=observer) for locator in from_adapters]
        new = [self.adapter(locator, observer=observer) for locator in to_adapters]
        with self._hashing(*old, *new, model, behind, is_dry=dry_run) as hashing:
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

    def _model_and_base(
        self, merged: str, base: str | None, *, dry_run: bool, observer: Observer | None
    ) -> tuple[Base, Base | None]:
        named = (merged,) if base is None else (merged, base)
        model, *rest = self._whole_bases(named, dry_run=dry_run, observer=observer)
        return model, rest[0] if rest else None

    def _hashing(self, *subjects: Adapter | Base | None, is_dry: bool = False) -> Hashing:
        """Hash all that a receipt tells of: each file once, as long as it stays as it is; the headers for a dry run."""
        there = [subject for subject in subjects if subject is not None]
        known = Fingerprints(self._cache_folder)
        return Hashing(there, headers_only=is_dry, is_whole=True, fingerprints=known)

    def _summing_device(self) -> str:
        """The processor unless another device is asked for: the disk decides how long it takes, and bits differ."""
        if self.device in ("auto", "cpu"):
            return "cpu"
        from lora_lab.linalg.device import resolve_device

        return resolve_device(self.device)

    @abstractmethod
    def words(self) -> dict[str, Any]:
        """What was said for opening inputs, as receipts keep it."""

    def _options(self, how: How, *, allow_nonfinite: bool = False) -> MergeOptions:
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
            device=self._summing_device(),
            modules=tuple(how.get("modules", ())),
            is_partial=how.get("partial", False),
            saved_modules=SavedModules.SKIP if how.get("skip_saved_modules") else SavedModules.TAKE,
            saved_modules_from=how.get("saved_modules_from"),
            allow_nonfinite=allow_nonfinite,
            words=self.words(),
        )


def _opened(undo: str | Path | None) -> Undo | None:
    from lora_lab.operations.undo import open_undo

    return None if undo is None else open_undo(undo)
