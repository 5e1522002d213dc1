"""What a session finds on the Hub, and in its cache on this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from lora_lab.domain.report import Column, ColumnKind, Report, Table
from lora_lab.errors import HubError

if TYPE_CHECKING:
    from lora_lab.sources.hub import Hub
    from lora_lab.sources.hub_search import Shelved

_COLUMNS: Final = (
    Column("repository", "Repository", ColumnKind.TEXT),
    Column("base_model", "Base model", ColumnKind.TEXT),
    Column("downloads", "Downloads", ColumnKind.INTEGER),
    Column("likes", "Likes", ColumnKind.INTEGER),
    Column("modified_seconds", "Modified", unit="s", formula="since 1970"),
    Column("access", "Access", ColumnKind.TEXT),
    Column("path", "Path", ColumnKind.TEXT, is_wide=True),
    Column("size_bytes", "Size", ColumnKind.BYTES, unit="bytes"),
    Column("is_adapter", "Adapter", ColumnKind.VALUE, is_wide=True),
)


class Shelving(ABC):
    """Searches the Hub, and lists what is here of it."""

    @property
    @abstractmethod
    def hub(self) -> Hub:
        """The Hub, as this session may ask it."""

    def search_hub(self, query: str = "", *, limit: int = 50) -> Report:
        """Search the Hub's adapters by words of their names, the most downloaded first.

        Raises
        ------
        HubError
            it may not be asked, said no, or could not be reached.
        """
        from lora_lab.sources.hub_search import search

        access = self.hub.access
        if access.is_offline:
            raise HubError("The Hub is not searched while offline.", hint="Drop --offline and HF_HUB_OFFLINE.")
        return _report("search_hub", search(query, access, limit=limit))

    def cached_hub(self) -> Report:
        """List what of the Hub is on this machine, the one used last first; nobody is asked."""
        from lora_lab.sources.hub_search import cached

        return _report("cached_hub", cached())


def _report(command: str, found: list[Shelved]) -> Report:
    rows = tuple(asdict(one) for one in found)
    return Report(command, "The Hub", (Table("repositories", "Repositories", _COLUMNS, rows, key="repository"),))
