"""Where PEFT nests the factors of a parameter, and which factors are of a parameter and not of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.domain.adapter import DeltaKind
from lora_lab.formats.peft_keys import PREFIX
from lora_lab.operations.saved_modules import canonical_name

if TYPE_CHECKING:
    from lora_lab.domain.adapter import Adapter, Delta

_WEIGHT: Final = ".weight"


def level_of(delta: Delta) -> str:
    """Where the file has the factors: the module's path, nesting included."""
    name = delta.lora_A.name
    return canonical_name(name[: name.rindex(".lora_")]).removeprefix(PREFIX)


def parameter_of(delta: Delta, adapter: Adapter) -> str | None:
    """Path of the parameter that `delta` is of; None of a module's factors."""
    if delta.kind is DeltaKind.EXPERTS:
        return delta.weight_path
    if delta.kind is not DeltaKind.LINEAR:
        return None
    level = level_of(delta)
    if level != delta.module:
        return delta.module
    path = f"{delta.module}{_WEIGHT}"
    targets = adapter.configuration.get("target_parameters") or ()
    return path if any(path == target or path.endswith(f".{target}") for target in targets) else None
