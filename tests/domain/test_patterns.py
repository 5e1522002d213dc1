"""Patterns mean what PEFT makes of them, and cannot hang."""

from __future__ import annotations

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from lora_lab.domain.patterns import is_target, matches, pattern_value
from lora_lab.errors import AdapterError

MODULES = (
    "q_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.11.self_attn.q_proj",
    "model.layers.1.mlp.up_proj",
)
PATTERNS = ("q_proj", "proj", "layers.1.self_attn.q_proj", r"layers\.\d+\.mlp\..*", "1.*", "^model.*", "q_proj|up_proj")


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_pattern_keys_as_in_peft(pattern: str, module: str) -> None:
    """A key of rank_pattern applies exactly where PEFT applies it."""
    assert matches(pattern, module) == (get_pattern_key([pattern], module) == pattern)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    "target", [["q_proj"], ["proj"], ["self_attn.q_proj"], r".*\.q_proj", "q_proj", r"model\.layers\.1\..*"]
)
def test_targets_as_in_peft(target: str | list[str], module: str) -> None:
    """Lists name ends, strings are whole-name expressions."""
    assert is_target(module, target) == bool(check_target_module_exists(LoraConfig(target_modules=target), module))


def test_excluded_modules_are_no_targets() -> None:
    """Exclusion wins."""
    assert not is_target("a.q_proj", ["q_proj"], ["a.q_proj"])


def test_first_matching_key_wins() -> None:
    """The order of the file decides between two keys that match."""
    assert pattern_value({"q_proj": 1, ".*q_proj": 2}, "a.q_proj", 0) == 1
    assert pattern_value({"v_proj": 1}, "a.q_proj", 0) == 0


@pytest.mark.parametrize("bomb", ["(a|aa)+$", "(a|a)*[bc]"])
def test_a_bomb_is_an_error(bomb: str) -> None:
    """A pattern that backtracks for hours is refused by name as soon as its time is up."""
    with pytest.raises(AdapterError, match="takes longer"):
        matches(bomb, "a" * 200 + "d")


@pytest.mark.parametrize(
    "pattern", ["(", "[", "a" * 20_000, "(?P<x", "((a{1000}){1000}){1000}", "a{,99999}", "(" * 5000 + ")" * 5000]
)
def test_what_is_no_pattern_is_an_error(pattern: str) -> None:
    """A broken or endless expression is named in one sentence."""
    with pytest.raises(AdapterError):
        matches(pattern, "q_proj")
