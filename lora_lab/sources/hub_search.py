"""What there is to open: adapters that the Hub lists, and those that its cache on this machine holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_lab.sources.hub_refusals import persistently, refusal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from lora_lab.sources.hub_access import HubAccess

_ADAPTERS: Final = "lora"  # the tag by which the Hub filters adapters
_BASE_TAGS: Final = ("base_model:adapter:", "base_model:")
_WEIGHTS: Final = ".safetensors"


@dataclass(frozen=True, slots=True)
class Shelved:
    """A repository that can be opened; what is not known is None."""

    repository: str
    base_model: str | None = None
    downloads: int | None = None
    likes: int | None = None
    modified_seconds: float | None = None  # since 1970
    access: str = ""  # private or gated
    path: str = ""  # of its newest snapshot in the cache
    size_bytes: int | None = None  # in the cache
    is_adapter: bool = True


def search(
    query: str, access: HubAccess, *, limit: int, is_cancelled: Callable[[], bool] = lambda: False
) -> list[Shelved]:
    """Ask the Hub for adapters, the most downloaded first.

    Parameters
    ----------
    query : words of a name; none means all
    limit : most rows

    Raises
    ------
    HubError
        the Hub said no, or could not be reached.
    """
    api = access.api()

    def look() -> list[Any]:
        return list(api.list_models(filter=_ADAPTERS, search=query or None, sort="downloads", limit=limit, full=True))

    try:
        found = persistently(look, is_cancelled=is_cancelled)
    except Exception as error:
        raise refusal_of(error, query or "adapters", access, doing="be searched for") from None
    return [_listed(info) for info in found]


def _listed(info: Any) -> Shelved:
    modified = info.last_modified or info.created_at
    return Shelved(
        str(info.id),
        _base_of(info.tags or ()),
        info.downloads,
        info.likes,
        None if modified is None else modified.timestamp(),
        "gated" if info.gated else "private" if info.private else "",
    )


def _base_of(tags: Iterable[str]) -> str | None:
    """The base model that the Hub's tags name."""
    tags = list(tags)
    for prefix in _BASE_TAGS:
        for tag in tags:
            name = tag.removeprefix(prefix)
            if name != tag and ":" not in name:
                return name
    return None


def cached() -> list[Shelved]:
    """List the adapters and models in the Hub's cache, the one used last first; nobody is asked."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for one in sorted(repositories, key=lambda one: -one.last_accessed):
        revisions = sorted(one.revisions, key=lambda revision: (not revision.refs, -revision.last_modified))
        newest = next((revision for revision in revisions if _holds_weights(revision)), None)
        if one.repo_type != "model" or newest is None:
            continue
        names = {file.file_name for file in newest.files}
        found.append(
            Shelved(
                one.repo_id,
                _base_in(newest.snapshot_path),
                modified_seconds=one.last_accessed,
                path=str(newest.snapshot_path),
                size_bytes=newest.size_on_disk,
                is_adapter="adapter_config.json" in names,
            )
        )
    return found


def _holds_weights(revision: Any) -> bool:
    return any(file.file_name.endswith(_WEIGHTS) for file in revision.files)


def _base_in(snapshot: Path) -> str | None:
    """The base model that the adapter in a snapshot names."""
    from lora_lab.errors import LoraLabError
    from lora_lab.storage.files import read_json

    path = snapshot / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        named = read_json(path).get("base_model_name_or_path")
    except (LoraLabError, AttributeError):
        return None
    return named if isinstance(named, str) else None
