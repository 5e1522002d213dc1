"""What a session changes: files in, files and a receipt out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.errors import LoraLabError, quoted
from lora_lab.session.records import Hashing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report
    from lora_lab.session.session import Session


def merge(
    session: Session,
    adapters: Sequence[str],
    *,
    base: str,
    output: str | Path,
    strengths: Sequence[float] = (),
    dtype: str | None = None,
    rounding: str = "nearest",
    modules: Sequence[str] = (),
    partial: bool = False,
    skip_saved_modules: bool = False,
    saved_modules_from: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    observer: Observer | None = None,
) -> Report:
    """Merge adapters into a base, as :meth:`lora_lab.Session.merge` describes."""
    from lora_lab.formats.factors import FactorReader
    from lora_lab.linalg.rounding import Rounding
    from lora_lab.operations.merge import merge as merged
    from lora_lab.operations.merge import preview
    from lora_lab.operations.options import MergeOptions, SavedModules, dtype_named

    if not adapters:
        raise LoraLabError("There is nothing to merge, expected at least one adapter.")
    if rounding not in list(Rounding):
        raise LoraLabError(f"The rounding is {quoted(rounding)}, expected one of: {', '.join(Rounding)}.")
    opened = [session.adapter(locator) for locator in adapters]
    model = session.base(base)
    options = MergeOptions(
        strengths=tuple(strengths),
        dtype=dtype_named(dtype) if dtype else None,
        rounding=rounding,
        seed=session.seed,
        modules=tuple(modules),
        is_partial=partial,
        saved_modules=SavedModules.SKIP if skip_saved_modules else SavedModules.TAKE,
        saved_modules_from=saved_modules_from,
    )
    target = Path(output)
    if dry_run:
        return preview(opened, model, target, options=options, overwrite=overwrite)
    with Hashing((*opened, model)) as hashing:
        return merged(
            opened,
            model,
            target,
            reader=FactorReader(),
            options=options,
            inputs=hashing.records,
            overwrite=overwrite,
            resume=resume,
            observer=observer,
        )
