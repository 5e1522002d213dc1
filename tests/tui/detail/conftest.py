"""An adapter and its spectrum."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from tui.detail.made import make_adapter, make_report, module_names

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.report import Report


@pytest.fixture(autouse=True)
def seldom_collected() -> Iterator[None]:
    """Collect garbage after a screen, not a hundred times while it is drawn: a third of the time of these tests."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, *before[1:])
    yield
    gc.set_threshold(*before)


@pytest.fixture
def adapter() -> Adapter:
    """Twelve layers of four projections, r=16."""
    return make_adapter(module_names())


@pytest.fixture
def report(adapter: Adapter) -> Report:
    """Its spectrum."""
    return make_report(adapter)
