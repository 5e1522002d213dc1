"""The Hub: a repository's adapter or model, asked for once and fetched into the shared Hugging Face cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lora_lab.domain.progress import Unwatched
from lora_lab.errors import NotOnHubError, UnsafeFileError, quoted
from lora_lab.sources import hub_cache, hub_listing
from lora_lab.sources.hub_fetching import Arrived, Fetching
from lora_lab.sources.hub_listing import Listing, Wanted, wanted
from lora_lab.storage.cache import JsonCache
from lora_lab.storage.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Finding
    from lora_lab.sources.hub_access import HubAccess
    from lora_lab.sources.locators import Locator

_CACHE_BYTES: Final = 64 << 20
_TO_OPEN: Final = (".safetensors", ".json", ".bin")
_SAID_WHEN_OPENED: Final = frozenset({"unsafe_file_name", "oversized_file"})


@dataclass(frozen=True, slots=True)
class Fetched:
    """Files of the cache, the commit that they are of, and what a person should know of it."""

    path: Path  # the folder or file that the locator names
    commit: str
    arrived: tuple[Arrived, ...] = ()
    findings: tuple[Finding, ...] = ()


class Hub:
    """The Hub as one session sees it: a revision is resolved to a commit once, and stays that commit.

    Parameters
    ----------
    access : offline or not, and where the token may go
    cache_folder : remembers what was listed; None remembers nothing beyond this session
    """

    def __init__(self, access: HubAccess, cache_folder: Path | None = None) -> None:
        self.access = access
        self._cache = None if cache_folder is None else JsonCache(cache_folder / "hub", limit_bytes=_CACHE_BYTES)
        self._listings: dict[tuple[str, str | None], Listing] = {}

    def listing(self, locator: Locator, *, observer: Observer | None = None) -> Listing:
        """What the repository holds, at the commit that it had when this session first asked.

        Raises
        ------
        HubError
            not found, not allowed, or neither reachable nor in the cache; one sentence each.
        """
        key = (locator.repository, locator.revision)
        if key not in self._listings:
            watcher = observer or Unwatched()
            found = hub_listing.ask(locator, self.access, self._cache, is_cancelled=watcher.is_cancelled)
            self._listings[key] = found
            self._listings.setdefault((locator.repository, found.commit), replace(found, findings=()))
        return self._listings[key]

    def pin(self, locator: Locator, commit: str) -> None:
        """Let what `locator` names be the repository at `commit` for the rest of this session.

        Raises
        ------
        HubError
            as :meth:`listing`.
        """
        at_commit = self.listing(replace(locator, revision=commit))
        self._listings[locator.repository, locator.revision] = at_commit

    def fetch(
        self,
        locator: Locator,
        *,
        is_recursive: bool = False,
        allow_pickle: bool = False,
        is_checking_all: bool = False,
        digest: Callable[[Path], str] = sha256_of,
        observer: Observer | None = None,
    ) -> Fetched:
        """Make the files that `locator` stands for available on this machine.

        Parameters
        ----------
        locator : a place on the Hub: a repository, a folder in it, or a file, which comes with those beside it
        is_recursive : take the folders below too; of a file, nothing beside it
        allow_pickle : take ``adapter_model.bin`` where there are no safetensors
        is_checking_all : hash files that were there before too
        digest : sha256 of a file
        observer : told of bytes

        Raises
        ------
        HubError
            not found, not allowed, not reachable, not in the cache, or not the bytes that the Hub lists.
        UnsafeFileError
            the locator names a file of a kind that is not fetched.
        OperationError
            the disk is full or may not be written, or the observer cancelled.
        """
        watcher = observer or Unwatched()
        listing = self.listing(locator, observer=watcher)
        place = listing.place_of(locator)
        chosen = self.wanted(locator, is_recursive=is_recursive, allow_pickle=allow_pickle)
        run = Fetching(listing, locator.text, self.access, watcher, digest=digest, is_checking_all=is_checking_all)
        if not is_recursive and not any(file.name.endswith(_TO_OPEN) for file in chosen.files):
            raise NotOnHubError(
                f"{quoted(locator.text)} has no weights and no configuration to fetch.",
                hint=self._elsewhere(listing, place) or "Look at its files on its page.",
            )
        arrived = run.run(chosen.files)
        path = hub_cache.snapshot(listing.repository, listing.commit) / locator.subfolder
        said = tuple(finding for finding in chosen.findings if is_recursive or finding.code in _SAID_WHEN_OPENED)
        return Fetched(path, listing.commit, arrived, (*listing.findings, *said))

    def wanted(self, locator: Locator, *, is_recursive: bool = False, allow_pickle: bool = False) -> Wanted:
        """Which files :meth:`fetch` would see to.

        Raises
        ------
        HubError, UnsafeFileError
        """
        listing = self.listing(locator)
        place = listing.place_of(locator)
        files = listing.below(place) if is_recursive else listing.beside(place)
        is_file = place != locator.subfolder
        if is_file and is_recursive:
            files = tuple(file for file in files if file.name == locator.subfolder)
        chosen = wanted(files, allow_pickle=allow_pickle)
        if is_file and all(file.name != locator.subfolder for file in chosen.files):
            raise UnsafeFileError(
                f"{quoted(locator.subfolder)} of {quoted(listing.repository)} is not of a kind that is fetched.",
                hint="Safetensors, JSON, tokenizer files and README.md are; --allow-pickle adds adapter_model.bin.",
            )
        return chosen

    def _elsewhere(self, listing: Listing, place: str) -> str:
        """Where in the repository there are adapters, for whoever looked in the wrong folder."""
        names = ("adapter_config.json", "adapter_model.safetensors")
        found = sorted({file.name.rpartition("/")[0] for file in listing.below(place) if file.name.endswith(names)})
        folders = [folder for folder in found if folder]
        if not folders:
            return ""
        shown = ", ".join(quoted(f"{listing.repository}:{folder}") for folder in folders[:3])
        return f"It has adapters in folders of its own: {shown}."
