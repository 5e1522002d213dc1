"""What the tests of this screen share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def seldom_collected() -> Iterator[None]:
    """Collect garbage after a screen, not a hundred times while it is drawn."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, *before[1:])
    yield
    gc.set_threshold(*before)
