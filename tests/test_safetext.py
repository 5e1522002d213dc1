"""Text from a file is shown, never obeyed."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.errors import LoraLabError, quoted
from lora_lab.safetext import is_suspicious, safe_text

HOSTILE = {
    "escape": "\x1b[31mred",
    "clipboard": "\x1b]52;c;QUJD\x07",
    "c1": "\x9b31m",
    "nul": "a\x00b",
    "newline": "a\nb\rc",
    "override": "safe\u202egnp.exe",
    "isolate": "\u2066x\u2069",
    "zero width": "a\u200bb",
    "line separator": "a\u2028b",
    "surrogate": "a\ud800b",
    "tag": "a\U000e0041b",
    "delete": "a\x7fb",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_becomes_visible(text: str) -> None:
    """Every character that would be obeyed is spelled out, and the text is flagged."""
    assert is_suspicious(text)
    assert not is_suspicious(safe_text(text))
    assert len(safe_text(text)) > len(text)


@given(st.text())
def test_nothing_a_terminal_obeys_survives(text: str) -> None:
    """No control, format, surrogate or separator character is left, and the rest is untouched."""
    shown = safe_text(text)
    assert all(unicodedata.category(character)[0] != "C" for character in shown)
    if not is_suspicious(text):
        assert shown == text


@given(st.text(), st.integers(min_value=1, max_value=60))
def test_limit_is_kept(text: str, limit: int) -> None:
    """A limit bounds what is shown, and short text is not shortened."""
    shown = safe_text(text, limit=limit)
    assert len(shown) <= limit
    if len(safe_text(text)) <= limit:
        assert shown == safe_text(text)


def test_markup_is_left_to_the_one_who_draws() -> None:
    """Brackets are ordinary characters here."""
    assert safe_text("[@click=app.quit]x[/]") == "[@click=app.quit]x[/]"


def test_errors_are_one_harmless_line() -> None:
    """An error that quotes a file holds no control character, however it was built."""
    error = LoraLabError(f"Bad name {quoted('x' * 1000)} \x1b[2J.", hint="Try\nagain.")
    assert not is_suspicious(str(error))
    assert len(str(error)) < 300
    assert str(error).endswith("Try\\x0aagain.")
