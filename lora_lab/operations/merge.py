"""W ← W + Σ wᵢ(W′ᵢ − W), streamed from a base's files into files divided alike."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain import figures
from lora_lab.domain.progress import Unwatched
from lora_lab.domain.report import Column, ColumnKind, Scalars
from lora_lab.errors import OperationError, quoted
from lora_lab.operations.execution import Execution, peak_memory_bytes
from lora_lab.operations.layout import plan_of
from lora_lab.operations.options import MergeOptions
from lora_lab.operations.planning import changes_of
from lora_lab.operations.receipt import RECEIPT, receipt_bytes, report_of
from lora_lab.storage.disk import Disk
from lora_lab.storage.staging import Finished, StagedFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.plan import Plan
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import InputRecord, Report
    from lora_lab.extension.contracts import Reader

# What a receipt, journal and folders take, and room that a file system keeps for itself.
_SPARE_BYTES: Final = 4 << 20
PLANNED: Final = (
    Column("bytes_to_write", "To write", ColumnKind.BYTES, unit="bytes"),
    Column("tensors_to_change", "Tensors to change", ColumnKind.INTEGER),
)


def plan_merge(adapters: Sequence[Adapter], base: Base, options: MergeOptions) -> Plan:
    """Work out everything that a merge will do, from headers alone.

    Raises
    ------
    AdapterError, CompatibilityError
        something does not fit; nothing has been written.
    """
    changes = changes_of(adapters, base, options)
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
    overwrite: bool = False,
    resume: bool = False,
    disk: Disk | None = None,
    observer: Observer | None = None,
) -> Report:
    """Merge adapters into a base and write the result to the folder `output`.

    Parameters
    ----------
    output : a folder that is not there, or is replaced with `overwrite`
    inputs : gives what was read, for the receipt; asked when everything else is done
    resume : go on with what an interrupted run of the same merge has finished

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
        a sum exceeds the type it is stored in, or an input is not finite.

    Notes
    -----
    Time of reading, writing and hashing the base, plus 2·R floating-point operations a changed weight; memory for some
    blocks of rows and the factors of one tensor.
    """
    options = options or MergeOptions()
    started = time.perf_counter()
    plan = plan_merge(adapters, base, options)
    disk = disk or Disk()
    with StagedFolder(output, plan.id, disk=disk, overwrite=overwrite, resume=resume) as staged:
        if staged.is_complete:
            raise OperationError(
                f"{quoted(output)} was completed by the run that was interrupted.", hint="There is nothing left to do."
            )
        _require_room(plan, output, sum(file.size_bytes for file in staged.finished.values()), disk)
        execution = Execution(plan, adapters, reader, options, observer or Unwatched())
        execution.write(staged)
        report = replace(_report(plan, adapters, execution, staged, started), inputs=tuple(inputs()))
        content = receipt_bytes(report)
        with staged.file(RECEIPT, len(content)) as file:
            file.write(content)
        staged.commit()
    return report


def _report(
    plan: Plan, adapters: Sequence[Adapter], execution: Execution, staged: StagedFolder, started: float
) -> Report:
    """What was done, when everything but the receipt is written."""
    numbers: dict[str, Any] = {
        "seconds": time.perf_counter() - started,
        "bytes_read": execution.bytes_read,
        "bytes_written": sum(file.size_bytes for file in staged.finished.values()),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    return report_of(
        plan,
        [adapter.name for adapter in adapters],
        fidelity=execution.fidelity,
        base_sha256=execution.base_sha256,
        outputs=sorted(staged.finished.values()),
        figures=numbers,
    )


def preview(
    adapters: Sequence[Adapter],
    base: Base,
    output: Path,
    *,
    options: MergeOptions | None = None,
    overwrite: bool = False,
) -> Report:
    """Say what :func:`merge` would write, and write nothing.

    Raises
    ------
    as :func:`merge` does before its first byte
    """
    plan = plan_merge(adapters, base, options or MergeOptions())
    if os.path.lexists(output) and not overwrite:
        raise OperationError(f"{quoted(output)} exists already.", hint="Choose another name, or pass --overwrite.")
    _require_room(plan, output, 0, Disk())
    files = [Finished(name, "", size) for name, size in plan.sizes]
    updates = [step for file in plan.files for step in file.steps if step.parts]
    names = [adapter.name for adapter in adapters]
    report = report_of(plan, names, fidelity={}, base_sha256={}, outputs=sorted(files), figures={})
    planned = {"bytes_to_write": plan.bytes_to_write, "tensors_to_change": len(updates)}
    return replace(report, scalars=(*report.scalars, Scalars("plan", "Plan", PLANNED, planned)))


def _require_room(plan: Plan, target: Path, there_bytes: int, disk: Disk) -> None:
    """Refuse before the first byte where they cannot all be written."""
    parent = Path(os.path.abspath(target)).parent  # noqa: PTH100 - the name as given, not where a link leads
    if not parent.is_dir():
        raise OperationError(f"The folder {quoted(parent)} is not there.", hint="Make it, or choose another place.")
    needed = plan.bytes_to_write - there_bytes + _SPARE_BYTES
    free = disk.free_bytes(parent)
    if free < needed:
        raise OperationError(
            f"{quoted(target)} takes {figures.size(needed)}, got {figures.size(free)} free where it is to be.",
            hint="Free some space, or choose another disk.",
        )
