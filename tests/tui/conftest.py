"""Fixtures of the terminal application's tests."""

from __future__ import annotations

import pytest
from tui.fakes import SIZES


@pytest.fixture(params=SIZES, ids=lambda size: "x".join(map(str, size)))
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Both sizes every screen is looked at in."""
    return request.param  # type: ignore[no-any-return]
