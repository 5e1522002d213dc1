"""Whether everything fits on the disk, asked before the first byte."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from lora_lab.domain import figures
from lora_lab.domain.report import Finding
from lora_lab.errors import OperationError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.domain.plan import Plan
    from lora_lab.storage.disk import Disk

# What a receipt, journal and folders take, and room that a file system keeps for itself.
_SPARE_BYTES: Final = 4 << 20


class Beside(NamedTuple):
    """A file that is written beside the output, of which only bounds are known before.

    path : the file to appear
    usual_bytes : what it takes as a rule
    most_bytes : what it can take
    """

    path: Path
    usual_bytes: int
    most_bytes: int


def require_room(plan: Plan, target: Path, there_bytes: int, disk: Disk, beside: Beside | None) -> Iterator[Finding]:
    """Refuse where what `plan` says cannot all be written; yield what may not fit.

    Parameters
    ----------
    target : the output
    there_bytes : how much of it an interrupted run has written
    beside : a file that is written too

    Raises
    ------
    OperationError
        the output and what the file beside it usually takes do not fit, or a folder is not there.
    """
    parent = folder_of(target)
    if not parent.is_dir():
        raise OperationError(f"The folder {quoted(parent)} is not there.", hint="Make it, or choose another place.")
    needed = plan.bytes_to_write - there_bytes + _SPARE_BYTES
    is_shared = beside is not None and _device(folder_of(beside.path)) == _device(parent)
    free = disk.free_bytes(parent)
    if beside is not None and not is_shared:
        yield from _room_beside(beside, disk.free_bytes(folder_of(beside.path)), 0)
    if free < needed:
        raise OperationError(
            f"{quoted(target)} takes {figures.size(needed)}, got {figures.size(free)} free where it is to be.",
            hint="Free some space, or choose another disk.",
        )
    if beside is not None and is_shared:
        yield from _room_beside(beside, free, needed)


def _room_beside(beside: Beside, free: int, taken: int) -> Iterator[Finding]:
    left = free - taken
    if left < beside.usual_bytes:
        besides = f" beside the {figures.size(taken)} of the output" if taken else ""
        raise OperationError(
            f"{quoted(beside.path)} takes about {figures.size(beside.usual_bytes)}{besides}, got "
            f"{figures.size(free)} free where it is to be.",
            hint="Free some space, or choose another disk for it.",
        )
    if left < beside.most_bytes:
        yield Finding(
            "undo_may_not_fit",
            f"The undo file takes about {figures.size(beside.usual_bytes)} and can take up to "
            f"{figures.size(beside.most_bytes)}, for which there is no room where {quoted(beside.path)} is to be: "
            f"{figures.size(max(0, left))} would be left.",
        )


def folder_of(target: Path) -> Path:
    """The folder that a name is to appear in."""
    return Path(os.path.abspath(target)).parent  # noqa: PTH100 - the name as given, not where a link leads


def _device(folder: Path) -> int:
    return folder.stat().st_dev
