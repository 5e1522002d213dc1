"""The Hub: a repository's adapter or model as a folder of the shared Hugging Face cache.

Only safetensors, JSON and tokenizer files are fetched, by the Hub's own client, which also keeps cache and token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_lab.errors import HubError, quoted

if TYPE_CHECKING:
    from lora_lab.sources.locators import Locator

_WANTED: Final = ("*.safetensors", "*.json", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A folder of the cache, and the commit that it is."""

    path: Path
    commit: str


def fetch(locator: Locator, *, offline: bool = False) -> Fetched:
    """Make the files that `locator` stands for available on this machine.

    Parameters
    ----------
    locator : a place on the Hub
    offline : use what the cache has, ask nobody

    Raises
    ------
    HubError
        not found, not allowed, not reachable, or not in the cache; one sentence each.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    prefix = f"{locator.subfolder}/" if locator.subfolder else ""
    shown = quoted(locator.text)
    try:
        snapshot = snapshot_download(
            locator.repository,
            revision=locator.revision,
            allow_patterns=[prefix + pattern for pattern in _WANTED],
            local_files_only=offline,
        )
    except GatedRepoError:
        raise HubError(
            f"{shown} is gated, and this account has no access to it.",
            hint="Ask for access on its page, then log in: hf auth login",
        ) from None
    except RevisionNotFoundError:
        raise HubError(f"{shown} has no revision {quoted(locator.revision)}.", hint="Look at its branches.") from None
    except RepositoryNotFoundError:
        raise HubError(
            f"{shown} was not found on the Hub, or is private.", hint="Check the name; log in: hf auth login"
        ) from None
    except LocalEntryNotFoundError:
        raise HubError(
            f"{shown} is not in the cache, and the Hub {'was not asked' if offline else 'could not be reached'}.",
            hint="Connect, or drop --offline and HF_HUB_OFFLINE."
            if offline
            else "Look at the network, then try again.",
        ) from None
    except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OSError, ValueError) as error:
        raise HubError(f"{shown} could not be fetched: {type(error).__name__}.", hint="Try again later.") from None
    folder = Path(snapshot)
    place = folder / locator.subfolder if locator.subfolder else folder
    if not place.is_dir():
        raise HubError(f"{quoted(locator.repository)} has no folder {quoted(locator.subfolder)} with an adapter.")
    return Fetched(place, folder.name)
