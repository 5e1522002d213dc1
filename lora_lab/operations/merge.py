"""W ← W + Σ wᵢ(W′ᵢ − W), streamed from a base's files into files divided alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.analyses.trained_on import base_name_findings
from lora_lab.domain.progress import Unwatched
from lora_lab.errors import LoraLabError
from lora_lab.operations.execution import Execution
from lora_lab.operations.layout import plan_of
from lora_lab.operations.options import MergeOptions
from lora_lab.operations.planning import changes_of
from lora_lab.operations.running import Outcome, Target, carried_out
from lora_lab.operations.undo_writing import UndoWriter, written
from lora_lab.storage.disk import Disk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.plan import Plan
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import InputRecord, Report
    from lora_lab.extension.contracts import Reader
    from lora_lab.storage.staging import StagedFolder


def plan_merge(adapters: Sequence[Adapter], base: Base, options: MergeOptions) -> Plan:
    """Work out everything that a merge will do, from headers alone.

    Raises
    ------
    AdapterError, CompatibilityError
        something does not fit; nothing has been written.
    """
    changes = changes_of(adapters, base, options)
    changes.findings += [finding for adapter in adapters for finding in base_name_findings(adapter, base)]
    inputs = [stamp for subject in adapters for stamp in subject.files] + list(base.shards)
    arguments = {
        "adapters": [adapter.locator for adapter in adapters],
        "base": base.locator,
        "strengths": list(options.strengths_for(adapters)),
        "dtype": options.dtype.value if options.dtype else None,
        "rounding": str(options.rounding),
        "seed": options.seed,
        "modules": list(options.modules),
        "partial": options.is_partial,
        "skip_saved_modules": options.saved_modules.value == "skip",
        "saved_modules_from": options.saved_modules_from,
        "allow_nonfinite": options.allow_nonfinite,
        "device": options.device.partition(":")[0],
        **options.words,
    }
    return plan_of("merge", base, changes, dtype=options.dtype, arguments=arguments, inputs=inputs)


def merge(
    adapters: Sequence[Adapter],
    base: Base,
    output: Path,
    *,
    reader: Reader,
    options: MergeOptions | None = None,
    inputs: Callable[[], Sequence[InputRecord]] = tuple,
    undo: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    disk: Disk | None = None,
    observer: Observer | None = None,
) -> Report:
    """Merge adapters into a base and write the result to the folder `output`.

    Parameters
    ----------
    output : a folder that is not there, or is replaced with `overwrite`
    inputs : gives what was read, for the receipt; asked when everything else is done
    undo : file to write what gives the base back without it, see :mod:`~lora_lab.operations.undo`
    resume : go on with what an interrupted run of the same merge has finished
    dry_run : say what would be written, and write nothing

    Returns
    -------
    the receipt, which also stands in the folder

    Raises
    ------
    AdapterError, CompatibilityError
        something does not fit; nothing has been written.
    OperationError
        no room, no permission, or the output exists.
    NumericalError
        a sum exceeds the type it is stored in, or an input is not finite and may not be.
    LoraLabError
        an undo file is asked for where numbers need not be finite.

    Notes
    -----
    Time of reading, writing and hashing the base, plus 2·R floating-point operations a changed weight; memory for some
    blocks of rows and the factors of one tensor.
    """
    options = options or MergeOptions()
    _require_undoable(options, undo)
    plan = plan_merge(adapters, base, options)
    disk, writer = disk or Disk(), None
    if undo is not None:
        replaces = overwrite or resume
        writer = UndoWriter(undo, output, plan, base, adapters, options, disk=disk, overwrite=replaces)
    beside = writer.room if writer else None
    read: tuple[Adapter | Base, ...] = (*adapters, base)
    target = Target(output, overwrite, resume, disk, inputs, is_dry=dry_run, beside=beside, read=read)

    def work(staged: StagedFolder) -> Outcome:
        execution = Execution(plan, adapters, reader, options, observer or Unwatched(), writer)
        return written(execution, writer, staged)

    return carried_out(plan, [adapter.name for adapter in adapters], target, work)


def _require_undoable(options: MergeOptions, undo: Path | None) -> None:
    if options.allow_nonfinite and undo is not None:
        raise LoraLabError(
            "An undo file and --allow-nonfinite are asked for, expected one of them: from NaN no subtraction gives a "
            "weight back.",
            hint="Keep the base: unmerge --base is exact.",
        )
