"""Every built-in analysis, in the order in which a person meets them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.analyses.budget import Budget
from lora_lab.analyses.check import Check
from lora_lab.analyses.spectrum import Spectrum

if TYPE_CHECKING:
    from lora_lab.extension.contracts import Analysis

BUILT_IN: Final[tuple[Analysis, ...]] = (
    Spectrum(),
    Budget(),
    Check(),
)
