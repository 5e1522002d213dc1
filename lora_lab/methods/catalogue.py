"""Every built-in method, in the order in which a person meets them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.methods.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from lora_lab.methods.dare import DareLinear, DareTies
from lora_lab.methods.della import Della, DellaLinear
from lora_lab.methods.exact import BestRank, Concatenation, Linear
from lora_lab.methods.magnitude_prune import MagnitudePrune
from lora_lab.methods.slerp import MultiSlerp, Slerp
from lora_lab.methods.ties import Ties

if TYPE_CHECKING:
    from lora_lab.extension.contracts import MergeMethod

BUILT_IN: Final[tuple[MergeMethod, ...]] = (
    Linear(),
    Concatenation(),
    BestRank(),
    Ties(),
    DareLinear(),
    DareTies(),
    DellaLinear(),
    Della(),
    Breadcrumbs(),
    BreadcrumbsTies(),
    MagnitudePrune(),
    Slerp(),
    MultiSlerp(),
)
