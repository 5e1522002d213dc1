"""Checkpoints whose numbers are packed or scaled, told from their headers and configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.dtypes import DType
from lora_lab.errors import CompatibilityError, quoted

if TYPE_CHECKING:
    from lora_lab.domain.base import Base

# Types in which no plain checkpoint keeps a matrix: several numbers to an element, or integers with scales beside them.
_PACKED: Final = frozenset({DType.U8, DType.I32, DType.U32, DType.I64, DType.F4, DType.F6_E2M3, DType.F6_E3M2})
_SCALED: Final = frozenset({DType.I8, DType.F8_E4M3, DType.F8_E5M2, DType.F8_E4M3FNUZ, DType.F8_E5M2FNUZ})
_PACKED_NAMES: Final = (".qweight", ".weight_packed")


def packed_weights(base: Base) -> list[str]:
    """Names of weights whose stored shape is not that of their matrix."""
    return [
        name
        for name, ref in base.tensors.items()
        if name.endswith(_PACKED_NAMES) or (name.endswith(".weight") and ref.dtype in _PACKED)
    ]


def quantisation_of(base: Base) -> str:
    """How `base` is quantised, in a few words; empty when it is not."""
    settings: Any = base.configuration.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    packed = packed_weights(base)
    scaled = [name for name, ref in base.tensors.items() if name.endswith(".weight") and ref.dtype in _SCALED]
    stored = ""
    if packed or scaled:
        first = (packed or scaled)[0]
        stored = f"{len(packed or scaled)} weights of dtype {base.tensors[first].dtype.value}"
    if isinstance(settings, dict):
        named = f"quant_method {method}" if isinstance(method, str) else "a quantization_config"
        return f"{named}, {stored}" if stored else named
    return stored


def require_plain(base: Base, *, hint: str, why: str = "") -> None:
    """Refuse a model of which there are no plain weights to compute with.

    Parameters
    ----------
    hint : what to do instead of giving a quantised one
    why : plain weights are expected

    Raises
    ------
    CompatibilityError
        it is a configuration alone, or quantised.
    """
    if not base.tensors:
        raise CompatibilityError(
            f"{quoted(base.name)} is a configuration without weights, expected a model with weights.",
            hint="Give the folder that holds them.",
        )
    how = quantisation_of(base)
    if how:
        reason = f": {why}" if why else ""
        raise CompatibilityError(
            f"{quoted(base.name)} is quantised ({how}), expected plain weights{reason}.", hint=hint
        )
