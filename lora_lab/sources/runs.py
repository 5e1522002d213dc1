"""Which ranges are asked for to get tensors: neighbours by one request, as long as what lies between costs little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lora_lab.domain.tensors import FileStamp, TensorRef

# A range of several tensors is no longer than this, so that ranges can be asked for side by side; one tensor is one.
_MOST_BYTES: Final = 64 << 20
# Tensors that are read long after one another are not fetched together: what is fetched has to wait on the disk.
_BATCH_BYTES: Final = 256 << 20
_GAP_SHARE: Final = 32  # bytes between tensors are at most a 32nd of the tensors': 3.1 % more is moved, at the worst


RangeKey = tuple[str, int, int]  # path of the file, first byte, byte after the last


@dataclass(frozen=True, slots=True)
class Run:
    """One range of one file, and the tensors in it, in the order of their bytes."""

    file: FileStamp
    begin_bytes: int
    end_bytes: int
    refs: tuple[TensorRef, ...]

    @property
    def key(self) -> RangeKey:
        """What tells it from other ranges."""
        return self.file.path, self.begin_bytes, self.end_bytes

    @property
    def size_bytes(self) -> int:
        """Length of the range."""
        return self.end_bytes - self.begin_bytes


def coalesced(refs: Iterable[TensorRef]) -> list[Run]:
    """Make out of tensors, in the order in which they are read, the ranges to ask for, in the order of first need.

    A tensor without bytes needs no range. One that is named several times is fetched once.

    Examples
    --------
    >>> from lora_lab.domain.dtypes import DType
    >>> from lora_lab.domain.tensors import FileStamp, TensorRef
    >>> file = FileStamp("hf://org/name@0/model.safetensors", 1_000, etag="0")
    >>> places = [(100, 164), (166, 230), (500, 564)]
    >>> refs = [TensorRef(file, f"{begin}", DType.F32, (16,), begin, end) for begin, end in places]
    >>> [(run.begin_bytes, run.end_bytes) for run in coalesced(refs)]
    [(100, 230), (500, 564)]
    """
    return [run for batch in _batches(dict.fromkeys(refs)) for run in _runs(batch)]


def _batches(refs: Iterable[TensorRef]) -> Iterator[list[TensorRef]]:
    batch: list[TensorRef] = []
    size = 0
    for ref in refs:
        if not ref.size_bytes:
            continue
        if batch and size + ref.size_bytes > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(ref)
        size += ref.size_bytes
    if batch:
        yield batch


def _runs(batch: Sequence[TensorRef]) -> list[Run]:
    """Ranges of one batch: along each file, a tensor joins the one before it where that pays."""
    first_need = {ref: place for place, ref in reversed(list(enumerate(batch)))}
    runs: list[list[TensorRef]] = []
    begin = end = wanted = 0
    for ref in sorted(batch, key=lambda ref: (ref.file.path, ref.begin_bytes, ref.end_bytes)):
        fresh = max(ref.end_bytes - max(ref.begin_bytes, end), 0)  # what overlaps is fetched once
        length = max(end, ref.end_bytes) - begin
        joins = (
            bool(runs)
            and runs[-1][-1].file == ref.file
            and length <= _MOST_BYTES
            and (length - wanted - fresh) * _GAP_SHARE <= wanted + fresh
        )
        if runs and runs[-1][-1].file == ref.file and ref.end_bytes <= end:
            runs[-1].append(ref)  # a part of what is fetched anyhow
        elif joins:
            runs[-1].append(ref)
            end, wanted = max(end, ref.end_bytes), wanted + fresh
        else:
            runs.append([ref])
            begin, end, wanted = ref.begin_bytes, ref.end_bytes, ref.size_bytes
    made = [Run(refs[0].file, refs[0].begin_bytes, max(ref.end_bytes for ref in refs), tuple(refs)) for refs in runs]
    return sorted(made, key=lambda run: min(first_need[ref] for ref in run.refs))
