"""One strategy at work on weights of its own."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch

from lora_lab.benchmarks.memory import peak_bytes_of
from lora_lab.domain.figures import plural
from lora_lab.domain.report import Finding
from lora_lab.errors import CancelledError, LoraLabError, quoted
from lora_lab.extension.contracts import SwapFactors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_lab.benchmarks.swapping.exactness import Exactness
    from lora_lab.extension.contracts import SwapModule, Swapper, SwapScene, SwapStrategy

WRONG: Final = "wrong_result"
# Roundings that a swap by subtraction does: of the merged weight it begins with, in the middle and at the end, and that
# of what is right.
_ROUNDINGS: Final = 4.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a strategy said it has beside the weights of every module."""

    modules: tuple[tuple[SwapFactors, ...] | None, ...] = ()

    def beside(self, module: int) -> tuple[SwapFactors, ...] | None:
        """Of one of them."""
        return self.modules[module]


@dataclass(slots=True)
class Stall:
    """A strategy with one or more sets of weights that it swaps in turns, from adapter 0 to 1 and back.

    strategy : whose work is measured
    scenes, swappers : for each set of weights one
    swaps : how often each set was swapped
    attributed : names the strategy's owner around everything that it does
    failure : why it takes no part any more
    seen : what the first set had beside its weights when it was last looked at
    exactness : of the first set, as of the last look at it with an adapter in it
    """

    strategy: SwapStrategy
    scenes: list[SwapScene]
    swappers: list[Swapper]
    swaps: list[int] = field(default_factory=list)
    attributed: Callable[[], AbstractContextManager[None]] = nullcontext
    prepare_seconds: float = 0.0
    restore_seconds: float = 0.0
    failure: str = ""
    seen: Seen = field(default_factory=Seen)
    kept_bytes: int = 0
    moved_bytes: int = 0
    peak_bytes: int | None = None
    exactness: Exactness | None = None
    is_merged: bool = False
    restored: Exactness | None = None

    def __post_init__(self) -> None:
        self.swaps = [0] * len(self.scenes)

    def attempt(self, work: Callable[[], object]) -> bool:
        """Do what is the strategy's own, and say whether it was done; one that failed once takes no part any more."""
        if self.failure:
            return False
        try:
            with self.attributed():
                work()
        except CancelledError:
            raise
        except LoraLabError as error:
            self.failure = error.message
        return not self.failure

    def look(self) -> None:
        """Ask for everything that is not timed: what it keeps and moves, and what it has beside the first set."""
        swapper = self.swappers[0]
        self.kept_bytes, self.moved_bytes = int(swapper.kept_bytes), int(swapper.moved_bytes(0, 1))
        modules = self.scenes[0].modules
        self.seen = Seen(tuple(_beside(swapper, number, module) for number, module in enumerate(modules)))

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
        return sum(module.weight.nbytes for module in self.scenes[0].modules) + self.kept_bytes

    def faults(self, found: Exactness, delta_norm: float) -> Iterator[Finding]:
        """Say where the swaps so far did not give what they should, to the bit or to what roundings explain.

        Parameters
        ----------
        found : of the weights that were looked at
        delta_norm : ‖ΔA‖_F + ‖ΔB‖_F of all weights; what is rounded is as large as W′ and these
        """
        name, count = self.strategy.id, plural(self.swaps[0], "swap")
        if self.strategy.is_exact and not found.is_exact:
            yield Finding(
                "not_exact",
                f"{quoted(name)} promises every bit, and {found.differing} of {found.elements} weights differ after "
                f"{count}, relative error {found.relative or 0.0:.2g}.",
            )
        eps = max(torch.finfo(module.weight.dtype).eps for module in self.scenes[0].modules)
        bound = self.swaps[0] * _ROUNDINGS * eps / 2 * (math.sqrt(found.square) + delta_norm)
        if not math.sqrt(found.error_square) <= bound:  # NaN is wrong too
            yield Finding(
                WRONG,
                f"{quoted(name)} got no time: after {count} its relative error is {found.relative or 0.0:.2g}, more "
                "than roundings explain.",
            )


def _beside(swapper: Swapper, number: int, module: SwapModule) -> tuple[SwapFactors, ...] | None:
    """What a strategy has beside a weight; TypeError where that is nothing that can be."""
    found = swapper.beside(number)
    if found is None:
        return None
    for part in found:
        if not isinstance(part, SwapFactors):
            raise TypeError(f"beside() gave {type(part).__name__}, expected SwapFactors")
        made = (part.lora_B.shape[0], part.lora_A.shape[1])
        if made != tuple(module.weight.shape) or part.lora_B.shape[1] != part.lora_A.shape[0]:
            raise TypeError(f"beside() gave factors of {made}, expected those of {tuple(module.weight.shape)}")
    return tuple(found)
