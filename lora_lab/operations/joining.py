"""Which modules several adapters have in common, who has what of each, and what cannot be brought together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_lab.analyses.scope import refuse, selected
from lora_lab.analyses.summaries import summarised
from lora_lab.domain.dtypes import DType
from lora_lab.domain.modules import natural_key
from lora_lab.errors import AdapterError, CompatibilityError, quoted
from lora_lab.formats.peft_keys import NESTED
from lora_lab.operations.nesting import level_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.adapter import Adapter, Delta
    from lora_lab.operations.combine_options import CombineOptions

# What changes the weights besides ΔW, and what several adapters cannot have in common.
_DORA: Final = "dora"
_BESIDE: Final = {
    _DORA: "the magnitudes change the whole weight, which is known with the base alone",
    "kasa": "the base loses its smallest singular values when it is loaded",
}
_OF_ONE: Final = {
    "alora": "ΔW acts only after the invocation tokens",
    "layer_replication": "layers are counted in a lengthened model",
    "weight_tying": "layers that the base ties share what is trained",
}


@dataclass(frozen=True, slots=True)
class Joint:
    """One module with the adapters that have it.

    places : of the adapters, in their order
    """

    module: str
    places: tuple[int, ...]
    deltas: tuple[Delta, ...]

    @property
    def first(self) -> Delta:
        """The others have its kind, shape and orientation."""
        return self.deltas[0]

    def delta_of(self, place: int) -> Delta:
        """That of one adapter."""
        return self.deltas[self.places.index(place)]

    @property
    def sides(self) -> tuple[int, int]:
        """Rows of lora_B and columns of lora_A, of which a kernel's are one."""
        return self.first.lora_B.shape[0], math.prod(self.first.lora_A.shape[1:])

    @property
    def cost(self) -> int:
        """Parameters that one more rank takes."""
        return sum(self.sides)


def joints_of(adapters: Sequence[Adapter], options: CombineOptions, *, has_base: bool = False) -> list[Joint]:
    """Find every module and who has it, in natural order.

    Parameters
    ----------
    has_base : whether the base is at hand, with which the change of more adapters is known

    Raises
    ------
    AdapterError
        an adapter does what no pair of factors says.
    CompatibilityError
        two adapters have a module in different shapes.
    """
    found: dict[str, list[tuple[int, Delta]]] = {}
    for place, adapter in enumerate(adapters):
        _require_factors(adapter, is_alone=len(adapters) == 1, has_base=has_base)
        for delta in selected(adapter, options.modules):
            found.setdefault(delta.module, []).append((place, delta))
    joints = []
    for module in sorted(found, key=natural_key):
        places, deltas = zip(*found[module], strict=True)
        _require_alike(adapters, module, places, deltas)
        joints.append(Joint(module, places, deltas))
    if not joints:
        raise AdapterError("The adapters have no factors, expected at least one module.")
    return joints


def _require_factors(adapter: Adapter, *, is_alone: bool, has_base: bool) -> None:
    refuse(adapter, has_base=has_base)
    wrong = _BESIDE if is_alone else {**_BESIDE, **_OF_ONE}
    if has_base:
        wrong = {name: why for name, why in wrong.items() if name != _DORA}
    for feature in adapter.features:
        if feature.id in wrong:
            raise AdapterError(
                f"{quoted(adapter.name)} cannot be combined: {feature.title}, {wrong[feature.id]}.",
                hint="--base BASE gives the model that it was trained on; lora-lab merge adds it there as it is."
                if feature.id == _DORA
                else "Leave it as it is.",
            )
    for what, is_so in (
        ("grouped convolutions, whose sum has no such factors", lambda delta: delta.groups > 1),
        ("modules inside of another wrapped module", lambda delta: f"{NESTED}." in level_of(delta)),
    ):
        modules = [delta.module for delta in adapter.deltas if is_so(delta)]
        if modules:
            raise AdapterError(
                f"{quoted(adapter.name)} has {what}: {summarised(map(quoted, modules))}; combine knows linear layers, "
                "embeddings, plain convolutions and experts.",
                hint="--module GLOB does not help here; merge such an adapter into its base instead.",
            )


def _require_alike(adapters: Sequence[Adapter], module: str, places: Sequence[int], deltas: Sequence[Delta]) -> None:
    first = deltas[0]
    for place, delta in zip(places, deltas, strict=True):
        if _form(delta) != _form(first):
            told = [
                f"{one.kind.value} {list(one.shape)}{' with fan_in_fan_out' if one.fan_in_fan_out else ''}"
                f"{f', one of {one.experts}' if one.experts else ''} in {quoted(adapters[at].name)}"
                for at, one in ((places[0], first), (place, delta))
            ]
            raise CompatibilityError(
                f"ΔW of {quoted(module)} is {told[0]} and {told[1]}, expected one shape.",
                hint="The adapters belong to different bases; lora-lab diff shows every module.",
            )


def _form(delta: Delta) -> tuple[object, ...]:
    return delta.shape, delta.kind, delta.fan_in_fan_out, delta.experts


def widest(joints: Sequence[Joint]) -> DType:
    """The type that holds the factors of all of them: of bfloat16 and float16, and of what has 8 bits, float32."""
    found = {ref.dtype for joint in joints for delta in joint.deltas for ref in (delta.lora_A, delta.lora_B)}
    for dtype in (DType.F64, DType.F32):
        if dtype in found:
            return dtype
    return found.pop() if found in ({DType.BF16}, {DType.F16}) else DType.F32
