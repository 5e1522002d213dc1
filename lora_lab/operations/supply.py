"""Factors of many modules, read module by module from several adapters, and kept where they are wanted again."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.errors import NumericalError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.domain.adapter import Delta
    from lora_lab.domain.progress import Observer
    from lora_lab.extension.changes import Change
    from lora_lab.extension.contracts import Factors, Reader
    from lora_lab.operations.behind import Behind
    from lora_lab.operations.joining import Joint


@dataclass(frozen=True, slots=True)
class Portion:
    """What the adapters have of one module, in their order.

    biases : of lora_B, (out,); None where there is none
    magnitudes : of DoRA, (out,); None where there is none
    """

    joint: Joint
    factors: list[Factors]
    biases: list[torch.Tensor | None]
    magnitudes: list[torch.Tensor | None]
    behind: Behind | None = None

    @property
    def is_factored(self) -> bool:
        """Whether the factors say everything."""
        return all(magnitude is None for magnitude in self.magnitudes)

    @property
    def size_bytes(self) -> int:
        """Bytes of the factors."""
        return sum(one.lora_A.nbytes + one.lora_B.nbytes for one in self.factors)

    @contextmanager
    def changes(self) -> Iterator[list[Factors | Change]]:
        """Factors where they say everything, else rows made from the base, whose files are open meanwhile."""
        with ExitStack() as stack:
            found: list[Factors | Change] = []
            places = zip(self.joint.places, self.joint.deltas, self.factors, self.magnitudes, strict=True)
            for place, delta, factors, magnitude in places:
                if magnitude is None or self.behind is None:
                    found.append(factors)
                else:
                    found.append(stack.enter_context(self.behind.change(place, delta, factors, magnitude)))
            yield found


class Supply:
    """Reads portions, every file opened once for each pass.

    Parameters
    ----------
    adapters : how many there are
    behind : the base, where one is given
    is_kept : whether what was read is held in memory, so that another pass reads nothing of the adapters
    """

    def __init__(self, adapters: int, reader: Reader, *, behind: Behind | None = None, is_kept: bool = False) -> None:
        self._adapters = adapters
        self._reader = reader
        self.behind = behind
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
            if self.behind is not None:
                places = zip(joint.places, joint.deltas, factors, strict=True)
                factors = [self.behind.factors(*one) for one in places]
            biases = [None if one.lora_bias is None else self._reader.tensor(one.lora_bias) for one in joint.deltas]
            yield Portion(joint, factors, biases, [self._magnitude(one) for one in joint.deltas], self.behind)

    def _magnitude(self, delta: Delta) -> torch.Tensor | None:
        if delta.magnitude is None:
            return None
        found = self._reader.tensor(delta.magnitude).reshape(-1)
        if not torch.isfinite(found).all():
            raise NumericalError(
                f"{quoted(delta.magnitude.name)} in {quoted(delta.magnitude.file.path)} holds NaN or infinity, "
                "expected finite numbers.",
                hint="The training diverged, or the file is damaged.",
            )
        return found
