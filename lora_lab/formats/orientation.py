"""Whether factors make a weight as the base stores it, or turned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.domain.adapter import DeltaKind
from lora_lab.errors import CompatibilityError, quoted

if TYPE_CHECKING:
    from lora_lab.domain.adapter import Delta
    from lora_lab.extension.contracts import Factors


def is_turned(delta: Delta, factors: Factors, shape: tuple[int, int], *, hint: str) -> bool:
    """Whether ΔW is (lora_B @ lora_A)ᵀ where the base stores the weight; of experts the shape alone says it.

    Parameters
    ----------
    shape : of the weight, or of one expert's, as stored
    hint : what to do where nothing says it

    Raises
    ------
    CompatibilityError
        an expert's matrix is square.
    """
    if delta.kind is not DeltaKind.EXPERTS:
        return factors.is_transposed
    if shape[0] == shape[1]:
        raise CompatibilityError(
            f"The matrix of {quoted(delta.module)} is square, so the files do not say whether the base stores it "
            "transposed.",
            hint=hint,
        )
    return (factors.lora_B.shape[0], factors.lora_A.shape[1]) == shape[::-1]
