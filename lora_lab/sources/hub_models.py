"""Which repository is read in parts, and with what: the way from a locator to a remote model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.domain.progress import Unwatched
from lora_lab.errors import HubError, quoted
from lora_lab.sources import hub_cache
from lora_lab.sources.hub_fetching import Fetching
from lora_lab.sources.hub_listing import is_plain_name, wanted
from lora_lab.sources.local import kind_of_names
from lora_lab.sources.ranges import RangeReader, RemoteFile
from lora_lab.sources.remote import RemoteModel
from lora_lab.storage.cache import JsonCache

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.domain.progress import Observer
    from lora_lab.sources.hub import Hub
    from lora_lab.sources.hub_listing import ListedFile, Listing
    from lora_lab.sources.locators import Locator

_HEADERS_BYTES: Final = 256 << 20
_MODEL: Final = "model"
_WEIGHTS: Final = ".safetensors"


def remote_model(
    locator: Locator, hub: Hub, cache_folder: Path | None, observer: Observer | None = None
) -> RemoteModel | None:
    """Find the model that `locator` stands for, where not all of its weights are on this machine.

    Returns
    -------
    None for an adapter, for a single file, for what is no model, and for a model that lies whole in the Hub's cache:
    those are files, or become files when they are fetched

    Raises
    ------
    HubError
        as :meth:`~lora_lab.sources.hub.Hub.listing`.
    """
    watcher = observer or Unwatched()
    listing = hub.listing(locator, observer=watcher)
    place = listing.place_of(locator)
    beside = [file for file in listing.beside(place) if is_plain_name(file.name)]
    names = {file.name.rpartition("/")[2] for file in beside}
    if place != locator.subfolder or kind_of_names(names) != _MODEL:
        return None
    there = hub_cache.cached_files(listing.repository, listing.commit)

    def cached(name: str) -> Path | None:
        path, file = there.get(name), listing.file(name)
        return path if path is not None and file is not None and path.stat().st_size == file.size_bytes else None

    weights = [file for file in beside if file.name.endswith(_WEIGHTS)]
    if not weights or all(cached(file.name) for file in weights):
        return None

    def fetch(name: str) -> Path:
        file = listing.file(name)
        if file is None or not wanted((file,)).files:
            size = "" if file is None else f" of {file.size_bytes} bytes"
            raise HubError(f"{quoted(name)}{size} of {quoted(locator.text)} is no file that is fetched.")
        return Fetching(listing, locator.text, hub.access, watcher).run([file])[0].path

    return RemoteModel(
        listing.repository,
        listing.commit,
        place,
        {file.name: _remote(listing, file) for file in beside},
        reader=RangeReader(hub.access),
        fetch=fetch,
        cached=cached,
        findings=listing.findings,
        headers=None if cache_folder is None else JsonCache(cache_folder / "headers", limit_bytes=_HEADERS_BYTES),
    )


def _remote(listing: Listing, file: ListedFile) -> RemoteFile:
    return RemoteFile(listing.repository, listing.commit, file.name, file.size_bytes, file.etag or listing.commit)
