"""Whether a base goes by the name of the model that an adapter says it was trained on: one rule for every command."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from lora_lab.domain.report import Finding
from lora_lab.errors import quoted
from lora_lab.sources.locators import hub_locator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base

# What tools write where they know no name, or the folder of one run.
_NO_NAME: Final = re.compile(r"|\.+|model|checkpoint-\d+")
_CACHED: Final = re.compile(r"models--[^/]*?--([^/]+)/snapshots/[0-9a-f]{40}(?:/|$)")


def base_name_findings(adapter: Adapter, base: Base) -> Iterator[Finding]:
    """Yield ``base_model_differs`` where an adapter's configuration names one model and the base goes by another name.

    Names are compared by their last part, without revision, sub-folder or case: ``org/Name@main``, ``name/`` and
    ``C:\\models\\name`` are one. A base is known by its repository on the Hub, or by what its ``config.json`` records.
    The name of a folder can only agree: whoever made it may have called it anything, so that a local base without a
    recorded name, like an adapter without one, yields nothing.
    """
    trained_on = _last(adapter.base_model or "")
    recorded = base.configuration.get("_name_or_path")
    recorded = recorded if isinstance(recorded, str) and not _NO_NAME.fullmatch(_last(recorded)) else ""
    called = _repository(base) or recorded
    if not called or _NO_NAME.fullmatch(trained_on):
        return
    if trained_on not in {_last(name) for name in (called, recorded, base.name, base.locator, base.path)}:
        yield Finding(
            "base_model_differs",
            f"{quoted(adapter.name)} was trained on {quoted(adapter.base_model)}, and this base is called "
            f"{quoted(called)}.",
        )


def _repository(base: Base) -> str:
    """Name of the repository that a base of the Hub came from; empty for a folder of somebody's own."""
    if base.revision is None:
        return ""
    found = hub_locator(base.locator)
    cached = _CACHED.search(base.path.replace("\\", "/"))
    return found.repository if found else cached[1] if cached else base.name


def _last(name: str) -> str:
    """The last part of a name, in small letters; of a folder in the Hub's cache, the name of the repository."""
    path = name.replace("\\", "/").rstrip("/")
    cached = _CACHED.search(path)
    found = hub_locator(name)
    if cached:
        return cached[1].lower()
    return (found.repository if found else path).partition("@")[0].rpartition("/")[2].lower()
