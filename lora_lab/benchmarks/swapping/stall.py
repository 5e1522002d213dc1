"""One strategy at work on weights of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch

from lora_lab.benchmarks.memory import peak_bytes_of
from lora_lab.domain.report import Finding
from lora_lab.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.benchmarks.swapping.exactness import Exactness
    from lora_lab.extension.contracts import Swapper, SwapScene, SwapStrategy

WRONG: Final = "wrong_result"
# Roundings that a swap by subtraction does: of the merged weight it begins with, in the middle and at the end, and that
# of what is right.
_ROUNDINGS: Final = 4.0


@dataclass(slots=True)
class Stall:
    """A strategy with one or more sets of weights that it swaps in turns, from adapter 0 to 1 and back.

    strategy : whose work is measured
    scenes, swappers : for each set of weights one
    swaps : how often each set was swapped
    failure : why it takes no part any more
    """

    strategy: SwapStrategy
    scenes: list[SwapScene]
    swappers: list[Swapper]
    swaps: list[int] = field(default_factory=list)
    prepare_seconds: float = 0.0
    restore_seconds: float = 0.0
    failure: str = ""
    peak_bytes: int | None = None
    after_first: Exactness | None = None
    after_all: Exactness | None = None
    restored: Exactness | None = None

    def __post_init__(self) -> None:
        self.swaps = [0] * len(self.scenes)

    def prepare(self, scene: SwapScene) -> None:
        """Put adapter 0 in."""
        self.swappers.append(self.strategy.prepare(scene, 0))

    def work(self, run: int) -> None:
        """Swap the next set; the very first time, which is not kept, its memory is looked at."""
        place = run % len(self.scenes)
        old = self.swaps[place] % 2
        swapper = self.swappers[place]
        if run:
            swapper.swap(old, 1 - old)
        else:
            self.peak_bytes = peak_bytes_of(lambda: swapper.swap(old, 1 - old), self.scenes[place].device)
        self.swaps[place] += 1

    @property
    def adapter(self) -> int:
        """Which adapter the first set has now."""
        return self.swaps[0] % 2

    @property
    def held_bytes(self) -> int:
        """Weights of one set, and what is kept for them."""
        return sum(module.weight.nbytes for module in self.scenes[0].modules) + self.swappers[0].kept_bytes

    def faults(self, delta_norm: float) -> Iterator[Finding]:
        """Say where the first swap did not give what it should, to the bit or to what roundings explain.

        Parameters
        ----------
        delta_norm : ‖ΔA‖_F + ‖ΔB‖_F of all weights; what is rounded is as large as W′ and these
        """
        found, name = self.after_first, self.strategy.id
        assert found is not None
        if self.strategy.is_exact and not found.is_exact:
            yield Finding(
                "not_exact",
                f"{quoted(name)} promises every bit, and {found.differing} of {found.elements} weights differ after "
                f"one swap, relative error {found.relative or 0.0:.2g}.",
            )
        eps = max(torch.finfo(module.weight.dtype).eps for module in self.scenes[0].modules)
        bound = _ROUNDINGS * eps / 2 * (math.sqrt(found.square) + delta_norm)
        if not math.sqrt(found.error_square) <= bound:  # NaN is wrong too
            yield Finding(
                WRONG,
                f"{quoted(name)} got no time: after one swap its relative error is {found.relative or 0.0:.2g}, more "
                "than roundings explain.",
            )
