"""What a card is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.domain.report import Report


@dataclass(frozen=True)
class CardSubject:
    """What a card is about.

    ``bases`` are names of the Hub, the one that is adapted or merged into first; ``receipt`` is the document as it is
    published.
    """

    repository: str
    is_model: bool
    bases: tuple[str, ...] = ()
    task: str | None = None  # as PEFT names tasks
    licence: Mapping[str, str] = field(default_factory=dict)
    receipt: Mapping[str, Any] | None = None
    spectrum: Report | None = None
    figure: str = ""  # name of the file
    has_tokenizer: bool = False
    format: str = "peft"

    @property
    def name(self) -> str:
        """The repository without its owner."""
        return self.repository.rpartition("/")[2]

    @property
    def adapters(self) -> tuple[str, ...]:
        """What its receipt says was merged or combined."""
        arguments = (self.receipt or {}).get("arguments", {})
        found = arguments.get("adapters") or arguments.get("to") or []
        return tuple(found) if isinstance(found, list) else ()

    @property
    def relation(self) -> str:
        """What it is to its base, in the Hub's words."""
        if not self.is_model:
            return "adapter"
        return "merge" if len(self.adapters) > 1 or len(self.bases) > 1 else "finetune"
