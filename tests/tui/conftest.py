"""Fixtures of the terminal application's tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from tui.fakes import SIZES


@pytest.fixture(params=SIZES, ids=lambda size: "x".join(map(str, size)))
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Both sizes every screen is looked at in."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def seldom_collected() -> Iterator[None]:
    """Collect garbage after a screen, not a hundred times while it is drawn: a third of the time of these tests."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, *before[1:])
    yield
    gc.set_threshold(*before)
