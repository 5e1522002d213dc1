"""An adapter where a model is expected: known before its tensors are taken for weights."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lora_lab.errors import AdapterError, LoraLabError, quoted
from lora_lab.extension.contracts import Recognition
from lora_lab.sources.local import is_model_name, kind_of_names
from lora_lab.storage.files import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from lora_lab.domain.adapter import Adapter
    from lora_lab.extension.contracts import AdapterFormat
    from lora_lab.sources.hub import Hub
    from lora_lab.sources.locators import Locator

_CONFIGURATION: Final = "adapter_config.json"


def require_no_adapter(
    place: Path, locator: str, formats: Iterable[AdapterFormat], opened: Callable[[str], Adapter]
) -> None:
    """Refuse an adapter on this machine; a model's file, and a folder that holds one, is let through.

    Parameters
    ----------
    opened : opens the adapter, to say what it was trained on

    Raises
    ------
    AdapterError
        a format reads what is at `place`, or knows it by name.
    """
    names = {found.name for found in place.iterdir()} if place.is_dir() else {place.name}
    if any(is_model_name(name) for name in names):
        return
    if all(found.recognise(place) is Recognition.NO for found in formats):
        return
    trained_on = None
    with suppress(LoraLabError):
        trained_on = opened(locator).base_model
    raise _adapter(locator, trained_on)


def require_no_adapter_of_hub(hub: Hub, locator: Locator) -> None:
    """Refuse an adapter of the Hub, of which the configuration alone is fetched.

    Raises
    ------
    AdapterError
        the names of its files say that it is one.
    """
    listing = hub.listing(locator)
    place = listing.place_of(locator)
    names = {file.name.rpartition("/")[2] for file in listing.beside(place)}
    if kind_of_names(names) != "adapter" or any(is_model_name(name) for name in names):
        return
    said: Any = None
    with suppress(LoraLabError):
        file = f"{place}/{_CONFIGURATION}".lstrip("/")
        said = read_json(hub.fetch(replace(locator, subfolder=file), is_recursive=True).path)
    trained_on = said.get("base_model_name_or_path") if isinstance(said, dict) else None
    raise _adapter(locator.text, trained_on if isinstance(trained_on, str) else None)


def _adapter(locator: str, trained_on: str | None) -> AdapterError:
    told = f", trained on {quoted(trained_on)}" if trained_on else ""
    return AdapterError(
        f"{quoted(locator)} is an adapter{told}, expected a model with weights of its own.",
        hint="Give the model that it was trained on: its folder, or its name on the Hub.",
    )
