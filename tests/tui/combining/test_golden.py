"""The wizard as plain text, at both sizes; ``LORA_LAB_GOLDEN=write`` takes over a change that is meant."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tui.combining.driving import Driven, opened

SIZE = re.compile(r"(│ size +)\d\.\d\d kB")  # of files this small it is the configuration's, word by word
GOLDEN = Path(__file__).parent / "golden"


async def combining(driven: Driven) -> None:
    """Two adapters by their best rank."""
    await driven.choose("svd")
    await driven.fill(rank="2")


async def refused(driven: Driven) -> None:
    """A parameter beyond its range, and an energy beside an error."""
    await driven.choose("dare_ties")
    await driven.fill(setting_density="2", energy="0.9", error="0.1")


async def methods(driven: Driven) -> None:
    """What each would lose."""
    await combining(driven)
    await driven.press("e")


async def resizing(driven: Driven) -> None:
    """One adapter."""
    await driven.press("2")


async def extracting(driven: Driven) -> None:
    """A fine-tune, with what no factors stand for."""
    await driven.fill(energy="0.5")


VIEWS = {
    "combine": (("one", "two"), combining),
    "refused": (("one", "two"), refused),
    "methods": (("one", "two"), methods),
    "resize": (("one",), resizing),
    "extract": (("tuned",), extracting),
}


@pytest.mark.parametrize("view", VIEWS)
async def test_screen(view: str, size: tuple[int, int], here: Path) -> None:
    """The screen is the one in the file."""
    names, prepare = VIEWS[view]
    async with opened(*names, size=size) as driven:
        await prepare(driven)
        text = SIZE.sub(r"\g<1>#.## kB", driven.text) + "\n"
    assert len(text.splitlines()) == size[1]
    path = GOLDEN / f"{view}-{size[0]}x{size[1]}.txt"
    if os.environ.get("LORA_LAB_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
