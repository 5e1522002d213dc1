"""Every built-in strategy, from the one that keeps least to the one that merges nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.benchmarks.swapping.beside import Hotswap
from lora_lab.benchmarks.swapping.merged import FromCopy, Fused, Reload, UnmergeMerge
from lora_lab.benchmarks.swapping.undoing import Undo

if TYPE_CHECKING:
    from lora_lab.extension.contracts import SwapStrategy

BUILT_IN: Final[tuple[SwapStrategy, ...]] = (Reload(), UnmergeMerge(), Fused(), FromCopy(), Undo(), Hotswap())
