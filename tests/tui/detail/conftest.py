"""An adapter and its spectrum."""

from __future__ import annotations

import pytest
from tui.detail.made import make_adapter, make_report, module_names

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.report import Report


@pytest.fixture
def adapter() -> Adapter:
    """Twelve layers of four projections, r=16."""
    return make_adapter(module_names())


@pytest.fixture
def report(adapter: Adapter) -> Report:
    """Its spectrum."""
    return make_report(adapter)
