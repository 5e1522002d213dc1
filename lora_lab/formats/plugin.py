"""The built-in formats, as a plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.extension.hooks import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.extension.contracts import AdapterFormat


@hookimpl
def lora_lab_adapter_formats() -> Sequence[AdapterFormat]:
    """PEFT, and the formats known by name."""
    from lora_lab.formats.foreign import KnownByName
    from lora_lab.formats.peft import PeftFormat

    return (PeftFormat(), KnownByName())
