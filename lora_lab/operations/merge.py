"""W ← W + Σ wᵢ(W′ᵢ − W), streamed from a base's files into files divided alike."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.progress import Unwatched
from lora_lab.errors import OperationError, quoted
from lora_lab.operations.execution import Execution, peak_memory_bytes
from lora_lab.operations.layout import plan_of
from lora_lab.operations.options import MergeOptions
from lora_lab.operations.planning import changes_of
from lora_lab.operations.receipt import RECEIPT, receipt_bytes, report_of
from lora_lab.storage.disk import Disk
from lora_lab.storage.staging import StagedFolder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.plan import Plan
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import InputRecord, Report
    from lora_lab.extension.contracts import Reader

# What a receipt, journal and folders take, and room that a file system keeps for itself.
_SPARE_BYTES: Final = 4 << 20


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
    inputs: Sequence[InputRecord] = (),
    overwrite: bool = False,
    resume: bool = False,
    disk: Disk | None = None,
    observer: Observer | None = None,
) -> Report:
    """Merge adapters into a base and write the result to the folder `output`.

    Parameters
    ----------
    output : a folder that is not there, or is replaced with `overwrite`
    inputs : what was read, for the receipt
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
    names = [adapter.name for adapter in adapters]
    with StagedFolder(output, plan.id, disk=disk, overwrite=overwrite, resume=resume) as staged:
        if staged.is_complete:
            raise OperationError(
                f"{quoted(output)} was completed by the run that was interrupted.", hint="lora-lab verify looks at it."
            )
        _require_room(plan, staged, disk)
        execution = Execution(plan, adapters, reader, options, observer or Unwatched())
        execution.write(staged)
        figures: dict[str, Any] = {
            "seconds": time.perf_counter() - started,
            "bytes_read": execution.bytes_read,
            "bytes_written": sum(file.size_bytes for file in staged.finished.values()),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        outputs = sorted(staged.finished.values())
        report = report_of(plan, names, fidelity=execution.fidelity, outputs=outputs, figures=figures)
        content = receipt_bytes(report, inputs=[record.to_json() for record in inputs])
        with staged.file(RECEIPT, len(content)) as file:
            file.write(content)
        staged.commit()
    return report


def _require_room(plan: Plan, staged: StagedFolder, disk: Disk) -> None:
    """Refuse before the first byte where they cannot all be written."""
    needed = plan.bytes_to_write - sum(file.size_bytes for file in staged.finished.values()) + _SPARE_BYTES
    free = disk.free_bytes(staged.target.parent)
    if free < needed:
        raise OperationError(
            f"{quoted(staged.target)} takes {needed:,} bytes, got {free:,} free where it is to be.".replace(",", " "),
            hint="Free some space, or choose another disk.",
        )
