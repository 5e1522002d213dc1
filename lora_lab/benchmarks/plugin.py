"""The built-in strategies, registered by the hook that a stranger's plugin uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.benchmarks.catalogue import BUILT_IN
from lora_lab.extension.hooks import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.extension.contracts import SwapStrategy


@hookimpl
def lora_lab_swap_strategies() -> Sequence[SwapStrategy]:
    """Offer them all."""
    return BUILT_IN
