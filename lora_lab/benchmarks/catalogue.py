"""Every built-in strategy, from the one that keeps least to the one that merges nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from lora_lab.benchmarks.swapping.beside import Slots
from lora_lab.benchmarks.swapping.merged import Copying, Reloading, Subtracting
from lora_lab.benchmarks.swapping.undoing import Undoing

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.extension.contracts import Swapper, SwapScene


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A strategy: what it says of itself, and what is at work on a scene that begins with one of the adapters."""

    id: str
    title: str
    summary: str
    is_exact: bool
    swapper: Callable[[SwapScene, int], Swapper]

    def prepare(self, scene: SwapScene, first: int) -> Swapper:
        """Put adapter `first` in and keep whatever swaps need."""
        return self.swapper(scene, first)


BUILT_IN: Final = (
    BuiltIn(
        "reload",
        "Reload",
        "Reads the base from its files again, from the page cache where it is there, and merges.",
        is_exact=True,
        swapper=Reloading,
    ),
    BuiltIn(
        "unmerge_merge",
        "Unmerge, then merge",
        "Subtracts one adapter in a first pass over all weights and adds the other in a second.",
        is_exact=False,
        swapper=partial(Subtracting, is_fused=False),
    ),
    BuiltIn(
        "fused",
        "Fused",
        "Subtracts one adapter and adds the other in one pass; keeps nothing, promises no bits.",
        is_exact=False,
        swapper=partial(Subtracting, is_fused=True),
    ),
    BuiltIn(
        "from_copy",
        "From a kept copy",
        "Merges into a copy of the base that is kept in memory: exact, in one pass, for twice the memory.",
        is_exact=True,
        swapper=Copying,
    ),
    BuiltIn(
        "undo",
        "Exact residual",
        "Restores the base by the kept residual of the old adapter and merges the new one, in one pass: exact.",
        is_exact=True,
        swapper=Undoing,
    ),
    BuiltIn(
        "hotswap",
        "Hot swap",
        "Replaces unmerged factors in place; every token then pays for them.",
        is_exact=True,
        swapper=Slots,
    ),
)
