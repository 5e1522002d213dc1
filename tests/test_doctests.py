"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import lora_lab

MODULES = sorted(
    found.name for found in pkgutil.walk_packages(lora_lab.__path__, "lora_lab.") if not found.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    """The module imports, and its examples give what they say."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0
