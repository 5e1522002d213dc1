"""The built-in methods, registered by the hook that a stranger's plugin uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.extension.hooks import hookimpl
from lora_lab.methods.catalogue import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.extension.contracts import MergeMethod


@hookimpl
def lora_lab_merge_methods() -> Sequence[MergeMethod]:
    """Offer them all."""
    return BUILT_IN
