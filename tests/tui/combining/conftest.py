"""Fixtures of the wizard's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import factors, write_adapter, write_base


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two adapters, a base and a fine-tune, in which one is."""
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base", seed=1)
    write_base(tmp_path / "tuned", seed=2)
    write_adapter(tmp_path / "one", factors(seed=1))
    write_adapter(tmp_path / "two", factors(seed=2, rank=2), rank=2)
    return tmp_path
