"""The entry point: what this distribution adds to lora-lab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.extension.hooks import hookimpl
from lora_lab_subspace.core_space import CoreSpace
from lora_lab_subspace.isotropic import IsoC, IsoCTS
from lora_lab_subspace.knots import Knots
from lora_lab_subspace.svd_orthogonal import SvdOrthogonal
from lora_lab_subspace.task_vectors import TsvM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.extension.contracts import MergeMethod


@hookimpl
def lora_lab_merge_methods() -> Sequence[MergeMethod]:
    """Offer the six."""
    return [Knots(), TsvM(), IsoC(), IsoCTS(), CoreSpace(), SvdOrthogonal()]
