"""The entry point: what this distribution adds to lora-lab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.extension.hooks import hookimpl
from lora_lab_rmt.analysis import RandomMatrixView

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.extension.contracts import Analysis


@hookimpl
def lora_lab_analyses() -> Sequence[Analysis]:
    """Offer the random-matrix view."""
    return [RandomMatrixView()]
