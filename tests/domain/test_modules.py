"""Module paths sort as people count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from lora_lab.domain.modules import layer_of, natural_key, projection_of, select_modules

if TYPE_CHECKING:
    import random


@given(st.randoms(use_true_random=False))
def test_layers_sort_by_number(shuffler: random.Random) -> None:
    """Layer 2 comes before layer 10 whatever the order was."""
    expected = [f"model.layers.{layer}.{name}" for layer in range(120) for name in ("k_proj", "q_proj")]
    shuffled = list(expected)
    shuffler.shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == expected


@given(st.lists(st.text(max_size=30), max_size=8))
def test_any_names_can_be_sorted(names: list[str]) -> None:
    """The key is a total order on any text, digits of other scripts and endless numbers included."""
    names = [*names, "9" * 5000, "²", "٣"]
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


def test_layer_and_projection() -> None:
    """The first number is the layer; the last word is the projection."""
    assert layer_of("model.layers.11.mlp.experts.3.up_proj") == 11
    assert layer_of("lm_head") is None
    assert projection_of("features.3.block.0") == "block"
    assert projection_of("7") == "7"


def test_select_modules() -> None:
    """A glob selects whole names or name ends; none selects all; the order stays."""
    modules = ("layers.10.q_proj", "layers.2.q_proj", "layers.2.v_proj")
    assert select_modules(modules, ()) == modules
    assert select_modules(modules, ("q_proj",)) == modules[:2]
    assert select_modules(modules, ("layers.2.*",)) == modules[1:]
    assert select_modules(modules, ("proj",)) == ()
