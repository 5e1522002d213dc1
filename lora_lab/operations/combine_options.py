"""What a person may say about a combination of adapters."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from lora_lab.errors import LoraLabError
from lora_lab.operations.options import one_for_each

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.dtypes import DType

# 1 − e² of a smaller error could not be told from 1.
_LEAST_ERROR: Final = 1e-5


class Whole(StrEnum):
    """What becomes of modules that several adapters bring whole."""

    REFUSE = "refuse"
    AVERAGE = "average"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class CombineOptions:
    """How to combine.

    Parameters
    ----------
    strengths : one for each adapter, or none, which is 1 each
    rank : the most of every module
    energy : share in (0, 1] of ‖D‖² that every module keeps
    error : relative error ‖D − ΔW‖/‖D‖ that every module may have, from 1e-5 up
    parameters : number of factors' elements of all modules together, divided so that the least is lost
    dtype : of the factors; None is the widest of the inputs
    seed : of everything that draws
    modules : globs; none means all
    whole : what becomes of whole modules that several adapters bring
    saved_modules_from : name or locator of the adapter whose whole modules win
    words : of the session by which the inputs were opened, such as ``alpha``; they stand in the receipt
    """

    strengths: tuple[float, ...] = ()
    rank: int | None = None
    energy: float | None = None
    error: float | None = None
    parameters: int | None = None
    dtype: DType | None = None
    seed: int = 0
    modules: tuple[str, ...] = ()
    whole: Whole = Whole.REFUSE
    saved_modules_from: str | None = None
    words: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise LoraLabError(f"The rank is {self.rank}, expected at least 1.")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise LoraLabError(f"The energy is {self.energy:g}, expected a share above 0 and up to 1.")
        if self.error is not None and not _LEAST_ERROR <= self.error < 1.0:
            raise LoraLabError(f"The error is {self.error:g}, expected from {_LEAST_ERROR:g} to below 1.")
        if self.parameters is not None and self.parameters < 1:
            raise LoraLabError(f"The number of parameters is {self.parameters}, expected at least 1.")
        if self.energy is not None and self.error is not None:
            raise LoraLabError("Both an energy and an error were given, expected one.", hint="error² = 1 − energy.")
        if self.parameters is not None and {self.rank, self.energy, self.error} != {None}:
            raise LoraLabError("A number of parameters was given with a rank, an energy or an error, expected one.")
        if self.whole is not Whole.REFUSE and self.saved_modules_from is not None:
            raise LoraLabError("Of saved modules only one thing can be asked: from one, the average, or none.")

    def strengths_for(self, adapters: Sequence[Adapter]) -> tuple[float, ...]:
        """One strength for each adapter; raises as :func:`~lora_lab.operations.options.one_for_each`."""
        return one_for_each(self.strengths, adapters)

    def to_json(self) -> dict[str, Any]:
        """What was asked for, without what was not."""
        said = {**asdict(self), "whole": self.whole.value, "dtype": self.dtype.value if self.dtype else None}
        said |= said.pop("words")
        return {name: list(value) if isinstance(value, tuple) else value for name, value in said.items() if value}
