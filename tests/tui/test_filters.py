"""The filter's language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tui.fakes import entry, small_library, spectrum_report

from lora_lab.tui.library.digest import digest
from lora_lab.tui.library.filters import compile_filter, uses_measures
from lora_lab.tui.library.rows import Row, sort_rows

ROWS = [Row(found) for found in small_library()]


def kept(typed: str) -> list[str]:
    """Names of the rows that the filter keeps."""
    holds = compile_filter(typed)
    return [row.name for row in ROWS if holds(row)]


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("sql", ["sql-expert"]),
        ("SQL", ["sql-expert"]),
        ("mixed 10", ["mixed-10"]),
        ("base:llama", ["math-dora"]),
        ("type:base", ["tiny-base"]),
        ("tag:dora", ["math-dora"]),
        ("tag:broken", ["broken"]),
        ("tag:warning", ["mixed-10"]),
        ("r>=32", ["math-dora"]),
        ("r=4", ["legal-ner", "mixed-10", "mixed-9"]),
        ("r<8", ["legal-ner", "mixed-10", "mixed-9"]),
        ("alpha>16", ["sql-expert", "math-dora"]),
        ("params<1.5M type:lora", ["chat-de"]),
        ("size>=10mb", ["tiny-base"]),
        ("modules=96 -base:qwen", ["legal-ner", "math-dora"]),
        ("r!=16 base:qwen -tag:rank", ["chat-de"]),
        ("zz", []),
    ],
)
def test_parts(typed: str, names: list[str]) -> None:
    """Each part restricts, and all of them hold."""
    assert kept(typed) == names


@pytest.mark.parametrize("typed", ["", "   ", "r>=", "base:", "-", "tag:", "r>=x"])
def test_unfinished_parts_keep_everything(typed: str) -> None:
    """What is still being typed hides nothing."""
    assert len(kept(typed)) == len(ROWS)


def test_unknown_field_is_a_word() -> None:
    """A colon is an ordinary character elsewhere."""
    assert kept("http://x") == []


def test_measures() -> None:
    """Norm and effective rank compare once they are there, and not before."""
    row = Row(entry("a"))
    assert not compile_filter("norm>0")(row)
    row.digest = digest(spectrum_report(3.0))
    assert compile_filter("norm>0 eff>5 eff<6")(row)
    assert uses_measures("a norm>0")
    assert not uses_measures("a r>0")


@given(st.text(max_size=40))
def test_any_text_is_a_filter(typed: str) -> None:
    """Nothing a person types is an error, and one more word keeps those of the rows that it alone keeps."""
    assert kept(f"{typed} chat") == [name for name in kept(typed) if name in kept("chat")]


def test_sort_puts_missing_values_last_both_ways() -> None:
    """Undefined numbers come after the others, however it is sorted; ties are in natural order of names."""
    up = [row.name for row in sort_rows(ROWS, "alpha", is_descending=False)]
    down = [row.name for row in sort_rows(ROWS, "alpha", is_descending=True)]
    assert up[:4] == ["legal-ner", "chat-de", "math-dora", "sql-expert"]
    assert down[:4] == ["math-dora", "sql-expert", "chat-de", "legal-ner"]
    assert up[4:] == down[4:] == ["broken", "mixed-9", "mixed-10", "tiny-base"]


def test_names_sort_naturally() -> None:
    """9 before 10."""
    names = [row.name for row in sort_rows(ROWS, "name", is_descending=False)]
    assert names.index("mixed-9") < names.index("mixed-10")
