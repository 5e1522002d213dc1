"""What every operation that writes a model has in common: staging, room, receipt, name."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_lab.domain.base import Base
from lora_lab.domain.report import Column, ColumnKind, Scalars
from lora_lab.errors import OperationError, quoted
from lora_lab.operations.execution import peak_memory_bytes
from lora_lab.operations.receipt import RECEIPT, receipt_bytes, report_of
from lora_lab.operations.room import folder_of, require_room
from lora_lab.storage.disk import Disk
from lora_lab.storage.staging import Finished, StagedFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.plan import Plan
    from lora_lab.domain.report import Finding, InputRecord, Report, Table
    from lora_lab.domain.tensors import FileStamp
    from lora_lab.operations.execution import Execution
    from lora_lab.operations.room import Beside


PLANNED: Final = (
    Column("bytes_to_write", "To write", ColumnKind.BYTES, unit="bytes"),
    Column("bytes_free", "Free there", ColumnKind.BYTES, unit="bytes"),
    Column("undo_bytes_at_most", "Undo file at most", ColumnKind.BYTES, unit="bytes"),
    Column("tensors_to_change", "Tensors to change", ColumnKind.INTEGER),
)


@dataclass(frozen=True)
class Target:
    """Where an operation writes, and how.

    output : a folder that is not there, or is replaced with `overwrite`
    resume : go on with what an interrupted run of the same operation has finished
    inputs : gives what was read, for the receipt; asked when everything else is done
    is_dry : say what would be written, and write nothing
    changed : files of the model that is changed, whose place the output may take
    beside : an undo file that is written too
    read : models and adapters that the operation reads
    """

    output: Path
    overwrite: bool = False
    resume: bool = False
    disk: Disk = field(default_factory=Disk)
    inputs: Callable[[], Sequence[InputRecord]] = tuple
    is_dry: bool = False
    changed: tuple[FileStamp, ...] = ()
    beside: Beside | None = None
    read: tuple[Adapter | Base, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What was done, beyond the files."""

    execution: Execution
    scalars: tuple[Scalars, ...] = ()
    tables: tuple[Table, ...] = ()
    findings: tuple[Finding, ...] = ()


def carried_out(plan: Plan, names: Sequence[str], target: Target, work: Callable[[StagedFolder], Outcome]) -> Report:
    """Let `work` write the files of `plan`, add the receipt, and give the folder its name.

    Parameters
    ----------
    names : of the adapters, in the order that the plan's parts count

    Raises
    ------
    OperationError
        no room, no permission, or the output exists.
    """
    require_apart(target.output, target.read, overwrite=target.overwrite, changed=target.changed, others=plan.inputs)
    if target.beside is not None:
        require_apart(target.beside.path, target.read, overwrite=target.overwrite, others=plan.inputs)
    if target.is_dry:
        return previewed(plan, names, target)
    started = time.perf_counter()
    output = target.output
    with StagedFolder(output, plan.id, disk=target.disk, overwrite=target.overwrite, resume=target.resume) as staged:
        if staged.is_complete:
            raise OperationError(
                f"{quoted(output)} was completed by the run that was interrupted.", hint="There is nothing left to do."
            )
        there = sum(file.size_bytes for file in staged.finished.values())
        cautions = tuple(require_room(plan, output, there, target.disk, target.beside))
        outcome = work(staged)
        execution = outcome.execution
        numbers = {
            "seconds": time.perf_counter() - started,
            "bytes_read": execution.bytes_read,
            "bytes_written": sum(file.size_bytes for file in staged.finished.values()),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        report = report_of(
            plan,
            names,
            fidelity=execution.fidelity,
            base_sha256=execution.base_sha256,
            outputs=sorted(staged.finished.values()),
            figures=numbers,
        )
        report = replace(
            report,
            inputs=tuple(target.inputs()),
            scalars=(*report.scalars, *outcome.scalars),
            tables=(*report.tables, *outcome.tables),
            findings=(*report.findings, *cautions, *outcome.findings),
        )
        content = receipt_bytes(report)
        with staged.file(RECEIPT, len(content)) as file:
            file.write(content)
        staged.commit()
    return report


def previewed(plan: Plan, names: Sequence[str], target: Target) -> Report:
    """Say what :func:`carried_out` would write, and refuse what it would refuse before its first byte."""
    if os.path.lexists(target.output) and not target.overwrite:
        raise OperationError(
            f"{quoted(target.output)} exists already.", hint="Choose another name, or pass --overwrite."
        )
    cautions = require_room(plan, target.output, 0, target.disk, target.beside)
    findings = (*plan.findings, *cautions)
    files = [Finished(name, "", size) for name, size in plan.sizes]
    updates = [step for file in plan.files for step in file.steps if step.parts]
    report = report_of(plan, names, fidelity={}, base_sha256={}, outputs=sorted(files), figures={})
    planned = {
        "bytes_to_write": plan.bytes_to_write,
        "bytes_free": target.disk.free_bytes(folder_of(target.output)),
        "undo_bytes_at_most": target.beside.most_bytes if target.beside else None,
        "tensors_to_change": len(updates),
    }
    scalars = (*report.scalars, Scalars("plan", "Plan", PLANNED, planned))
    return replace(report, inputs=tuple(target.inputs()), scalars=scalars, findings=findings)


def require_apart(
    output: Path,
    read: Iterable[Adapter | Base],
    *,
    overwrite: bool,
    changed: Container[FileStamp] = (),
    others: Iterable[FileStamp] = (),
) -> None:
    """Refuse to write over what is read, and into a folder that is read: the next copy of it would take that along.

    Parameters
    ----------
    changed : files whose own folder the output may be
    others : files that are read beside those of `read`

    Raises
    ------
    OperationError
        the output lies within a folder that was given as an input, or would replace a folder with an input in it.
    """
    place = Path(os.path.realpath(output))
    read = tuple(read)
    for subject in read:
        folder = Path(os.path.realpath(subject.path))
        if folder.is_dir() and folder in place.parents:
            raise OperationError(
                f"{quoted(output)} lies within {quoted(subject.path)}, which is read: it would become a part of it.",
                hint="Choose a place outside of it.",
            )
    if not overwrite:
        return  # whatever is there stays
    for stamp in (*others, *(stamp for subject in read for stamp in _files_of(subject))):
        own = Path(os.path.realpath(stamp.path))
        link = Path(os.path.realpath(Path(stamp.path).parent), Path(stamp.path).name)
        if stamp in changed and link.parent == place:
            continue
        if place in (own, link, *own.parents, *link.parents):
            raise OperationError(
                f"{quoted(output)} holds {quoted(Path(stamp.path).name)}, which is read: it would be replaced.",
                hint="Choose another name for the output.",
            )


def _files_of(subject: Adapter | Base) -> tuple[FileStamp, ...]:
    return subject.shards if isinstance(subject, Base) else subject.files
