"""What loads what, seen from a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "scipy", "textual", "rich", "peft", "transformers", "huggingface_hub"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statement`."""
    code = (
        f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    [
        "lora_lab",
        "lora_lab.errors",
        "lora_lab.domain.adapter",
        "lora_lab.domain.report",
        "lora_lab.storage.header",
        "lora_lab.formats.peft",
        "lora_lab.extension.contracts",
        "lora_lab.session",
    ],
)
def test_light_rooms_load_nothing_heavy(module: str) -> None:
    """A room that only reads headers or names values needs neither torch nor numpy nor a shell's library."""
    assert loaded_by(f"import {module}") & HEAVY == set()


def test_this_test_can_fail() -> None:
    """The same look does see numpy when it is loaded."""
    assert "numpy" in loaded_by("import numpy") & HEAVY
