"""A base model or a full fine-tune: lazily read tensors, whatever the number of shards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.domain.report import Finding
    from lora_lab.domain.tensors import FileStamp, TensorRef


@dataclass(frozen=True)
class Base:
    """A checkpoint as its headers describe it; no weight has been read.

    ``tensors`` are in natural order of their names.
    """

    name: str
    locator: str
    path: str
    tensors: Mapping[str, TensorRef]
    shards: tuple[FileStamp, ...]
    configuration: Mapping[str, Any] = field(default_factory=dict)  # config.json
    metadata: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    revision: str | None = None

    @property
    def parameters(self) -> int:
        """Elements of every tensor."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(stamp.size_bytes for stamp in self.shards)
