"""Grouping, order, filter and folding of modules, without a terminal."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from tui.detail.made import module_names, spectrum_row

from lora_lab.domain.modules import select_modules
from lora_lab.tui.detail.feed import literal_glob
from lora_lab.tui.detail.module_tree import condensed
from lora_lab.tui.detail.outline import Grouping, Order, Outline


def labels(outline: Outline) -> list[str]:
    """Labels of the lines, modules indented."""
    return [("  " if line.is_inside else "") + line.label for line in outline.lines()]


def test_layers_stand_in_natural_order() -> None:
    """Layer 2 comes before layer 10."""
    outline = Outline(module_names(12, ["q_proj"]))
    assert labels(outline) == [f"L{layer}" for layer in range(12)]


def test_opened_groups_show_their_modules() -> None:
    """By projection the modules are called by their layers."""
    outline = Outline([*module_names(2, ["q_proj", "v_proj"]), "lm_head"])
    outline.opened = {"model.layers.1"}
    assert labels(outline) == ["L0", "L1", "  q_proj", "  v_proj", "lm_head"]
    outline.grouping = Grouping.PROJECTION
    outline.opened = {"q_proj"}
    assert labels(outline) == ["lm_head", "q_proj", "  L0", "  L1", "v_proj"]


def test_labels_are_one_of_a_kind() -> None:
    """Where a short name would stand twice, the path does; two stacks of layers keep their names apart."""
    outline = Outline(["m.layers.0.experts.0.up", "m.layers.0.experts.1.up", "m.layers.0.q"])
    outline.opened = {"m.layers.0"}
    assert labels(outline) == ["L0", "  experts.0.up", "  experts.1.up", "  q"]
    both = Outline(["encoder.block.0.q", "decoder.block.0.q"])
    assert len(set(labels(both))) == 2


def test_a_filter_takes_words_and_opens_groups() -> None:
    """All words must be there; -word must not; L1 is a layer, not L10."""
    outline = Outline(module_names(12, ["q_proj", "v_proj"]))
    outline.filter = "L1 -v_"
    assert labels(outline) == ["L1", "  q_proj"]
    assert outline.shown_modules() == ["model.layers.1.self_attn.q_proj"]
    outline.filter = "nothing"
    assert outline.lines() == []


def test_sorting_by_a_measure_puts_the_undefined_last() -> None:
    """Groups and modules both; the norm of a group is that of all its modules together."""
    modules = module_names(3, ["q_proj", "v_proj"])
    outline = Outline(modules)
    for module, values in zip(modules, ([1.0], [1.0], [3.0], [0.5], [0.0], [0.0]), strict=True):
        outline.rows[module] = spectrum_row(module, values, 1)
    outline.order = Order.NORM
    outline.opened = {"model.layers.1"}
    assert labels(outline) == ["L1", "  q_proj", "  v_proj", "L0", "L2"]
    assert outline.group_value(modules[:2]) == math.hypot(1.0, 1.0)
    outline.order = Order.EFFECTIVE_RANK
    assert labels(outline)[-1] == "L2"
    assert outline.group_value(modules[4:]) is None


def test_a_group_has_no_number_until_all_of_it_is_known() -> None:
    """Half a sum would be a wrong number."""
    modules = module_names(1, ["q_proj", "v_proj"])
    outline = Outline(modules)
    outline.rows[modules[0]] = spectrum_row(modules[0], [1.0], 1)
    assert outline.group_value(modules) is None
    assert not outline.is_known(modules)


@given(st.text(alphabet="ab.[]*?!0", min_size=1, max_size=12), st.text(alphabet="ab.[]*?!0", min_size=1, max_size=12))
def test_a_module_asked_for_by_name_is_that_module(name: str, other: str) -> None:
    """Names come from a file and may look like patterns."""
    found = select_modules([name, other], [literal_glob(name)])
    assert name in found
    assert other not in found or other == name or other.endswith(f".{name}")


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=60), st.integers(1, 12))
def test_condensing_keeps_the_largest(values: list[float | None], width: int) -> None:
    """Bars of a long spectrum never hide its peak."""
    short = condensed(values, width)
    assert len(short) == min(width, len(values))
    known = [value for value in values if value is not None]
    assert max((value for value in short if value is not None), default=None) == max(known, default=None)
