"""What a person may say about a merge."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.dtypes import DType
from lora_lab.errors import LoraLabError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.adapter import Adapter

_DTYPES: Final = {
    "float64": DType.F64,
    "float32": DType.F32,
    "float16": DType.F16,
    "bfloat16": DType.BF16,
}


class SavedModules(StrEnum):
    """What becomes of whole modules that an adapter brings."""

    TAKE = "take"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """How to merge.

    Parameters
    ----------
    strengths : one for each adapter, or none, which is 1 each
    dtype : of every float weight of the output; None keeps each weight's own
    rounding : ``nearest`` or ``stochastic``
    seed : of stochastic rounding
    modules : globs; none means all
    is_partial : leave modules out that the base lacks
    saved_modules : whether whole modules of adapters are taken
    saved_modules_from : name of the adapter whose whole modules win where several bring the same
    allow_nonfinite : let NaN and infinity through, in weights and in what is added to them
    device : where sums are computed, ``cpu``, ``cuda`` or ``cuda:N``
    words : of the session by which the inputs were opened, such as ``alpha``; they stand in the receipt
    """

    strengths: tuple[float, ...] = ()
    dtype: DType | None = None
    rounding: str = "nearest"
    seed: int = 0
    modules: tuple[str, ...] = ()
    is_partial: bool = False
    saved_modules: SavedModules = SavedModules.TAKE
    saved_modules_from: str | None = None
    allow_nonfinite: bool = False
    device: str = "cpu"
    words: Mapping[str, Any] = field(default_factory=dict)

    def strengths_for(self, adapters: Sequence[Adapter]) -> tuple[float, ...]:
        """One strength for each adapter; raises as :func:`one_for_each`."""
        return one_for_each(self.strengths, adapters)

    def to_json(self) -> dict[str, Any]:
        """The recipe, as receipts keep it."""
        return asdict(self)


def one_for_each(strengths: tuple[float, ...], adapters: Sequence[Adapter]) -> tuple[float, ...]:
    """One strength for each adapter; 1 each where there is none.

    Raises
    ------
    LoraLabError
        there are some, and not as many as adapters, or one is not finite.
    """
    if not strengths:
        return (1.0,) * len(adapters)
    if len(strengths) != len(adapters):
        raise LoraLabError(
            f"Got {len(strengths)} strengths for {len(adapters)} adapters, expected one for each or none.",
            hint="Repeat --strength in the order of the adapters.",
        )
    wrong = next((strength for strength in strengths if not math.isfinite(strength)), None)
    if wrong is not None:
        raise LoraLabError(f"The strength is {wrong}, expected a finite number.")
    return strengths


def dtype_named(text: str) -> DType:
    """The element type that a person names.

    Raises
    ------
    LoraLabError
        it is none of those that weights are summed into.

    Examples
    --------
    >>> dtype_named("bfloat16")
    <DType.BF16: 'BF16'>
    """
    try:
        return _DTYPES[text]
    except KeyError:
        raise LoraLabError(f"The dtype is {quoted(text)}, expected one of: {', '.join(_DTYPES)}.") from None
