"""Every built-in analysis, in the order in which a person meets them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.analyses.amplify import Amplify
from lora_lab.analyses.budget import Budget
from lora_lab.analyses.check import Check
from lora_lab.analyses.diff import Diff
from lora_lab.analyses.health import Health
from lora_lab.analyses.interference import Interference
from lora_lab.analyses.intrinsic import Intrinsic
from lora_lab.analyses.intruders import Intruders
from lora_lab.analyses.overlap import Overlap
from lora_lab.analyses.spectrum import Spectrum

if TYPE_CHECKING:
    from lora_lab.extension.contracts import Analysis

BUILT_IN: Final[tuple[Analysis, ...]] = (
    Spectrum(),
    Overlap(),
    Amplify(),
    Intruders(),
    Health(),
    Interference(),
    Diff(),
    Budget(),
    Check(),
    Intrinsic(),
)
