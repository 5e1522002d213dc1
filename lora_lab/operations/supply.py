"""Factors of many modules, read module by module from several adapters, and kept where they are wanted again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lora_lab.domain.progress import stop_if_cancelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from lora_lab.domain.progress import Observer
    from lora_lab.extension.contracts import Factors, Reader
    from lora_lab.operations.joining import Joint


class Portion(NamedTuple):
    """What the adapters have of one module, in their order.

    biases : of lora_B, (out,); None where there is none
    """

    joint: Joint
    factors: list[Factors]
    biases: list[torch.Tensor | None]

    @property
    def size_bytes(self) -> int:
        """Bytes of the factors."""
        return sum(one.lora_A.nbytes + one.lora_B.nbytes for one in self.factors)


class Supply:
    """Reads portions, every file opened once for each pass.

    Parameters
    ----------
    adapters : how many there are
    is_kept : whether what was read is held in memory, so that another pass reads nothing
    """

    def __init__(self, adapters: int, reader: Reader, *, is_kept: bool = False) -> None:
        self._adapters = adapters
        self._reader = reader
        self._kept: dict[str, Portion] | None = {} if is_kept else None

    def portions(self, joints: Sequence[Joint], observer: Observer) -> Iterator[Portion]:
        """Yield one portion for each joint, in order.

        Raises
        ------
        NumericalError
            a factor holds NaN or infinity.
        FileFormatError
            a file changed since its header was read.
        CancelledError
            the observer no longer wants it.
        """
        kept = self._kept
        read = self._read(joints if kept is None else [joint for joint in joints if joint.module not in kept])
        for joint in joints:
            stop_if_cancelled(observer)
            if kept is not None and joint.module in kept:
                yield kept[joint.module]
                continue
            portion = next(read)
            if kept is not None:
                kept[joint.module] = portion
            yield portion

    def _read(self, joints: Sequence[Joint]) -> Iterator[Portion]:
        streams = []
        for place in range(self._adapters):
            own = [
                delta for joint in joints for at, delta in zip(joint.places, joint.deltas, strict=True) if at == place
            ]
            streams.append(self._reader.factors_of(own))
        for joint in joints:
            factors = [next(streams[place])[1] for place in joint.places]
            refs = [delta.lora_bias for delta in joint.deltas]
            yield Portion(joint, factors, [None if ref is None else self._reader.tensor(ref) for ref in refs])
