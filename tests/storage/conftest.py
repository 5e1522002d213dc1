"""Files for the tests of the storage room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Write tensors with the format's own library and return the path."""

    def save(tensors: dict[str, torch.Tensor], name: str = "model.safetensors", **metadata: str) -> Path:
        save_file(tensors, tmp_path / name, metadata or None)
        return tmp_path / name

    return save
