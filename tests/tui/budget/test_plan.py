"""What is asked of the analysis, and the words that ask it on the command line."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from lora_lab.domain.modules import select_modules
from lora_lab.tui.budget.figures import percent, times
from lora_lab.tui.budget.plan import ALL_LINEAR, Plan, all_linear_of, kinds_of, presets_of, ticks_of


def matrix(module: str, count: int, shape: tuple[int, int], kind: str = "linear") -> dict[str, Any]:
    """A row of the report's table of matrices."""
    return {"module": module, "count": count, "shape": list(shape), "kind": kind}


LLAMA = [
    matrix("lm_head", 1, (32000, 4096)),
    matrix("model.embed_tokens", 1, (32000, 4096), "embedding"),
    *(matrix(f"model.layers.*.self_attn.{name}_proj", 32, (4096, 4096)) for name in "qkvo"),
    *(matrix(f"model.layers.*.mlp.{name}_proj", 32, (11008, 4096)) for name in ("gate", "up")),
]
BERT = [
    *(matrix(f"encoder.layer.*.attention.self.{name}", 12, (768, 768)) for name in ("query", "key", "value")),
    matrix("encoder.layer.*.attention.output.dense", 12, (768, 768)),
    matrix("encoder.layer.*.intermediate.dense", 12, (3072, 768)),
    matrix("encoder.layer.*.output.dense", 12, (768, 3072)),
]


@pytest.mark.parametrize("rows", [LLAMA, BERT])
def test_every_kind_has_targets_that_name_it_alone(rows: list[dict[str, Any]]) -> None:
    """As the analysis reads them: whole names, their ends, globs."""
    modules = {row["module"]: [row["module"].replace("*", str(layer)) for layer in range(row["count"])] for row in rows}
    everything = [module for group in modules.values() for module in group]
    for kind in kinds_of(rows):
        found = select_modules(everything, kind.part.split(","))
        assert set(found) == set(modules[kind.pattern]), kind.part


def test_short_ends_are_preferred() -> None:
    """What a person would type."""
    assert [kind.part for kind in kinds_of(LLAMA)][2:6] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert kinds_of(BERT)[3].part == "attention.output.dense"


def test_kinds_of_two_shapes_are_one_line() -> None:
    """Grouped-query models may have a pattern with several shapes."""
    (kind,) = kinds_of([matrix("h.*.kv", 2, (64, 128)), matrix("h.*.kv", 3, (32, 128))])
    assert kind.matrices == 5
    assert kind.shapes == ((64, 128), (32, 128))


def test_presets() -> None:
    """Named sets, or why there is none."""
    presets = {preset.id: preset for preset in presets_of(kinds_of(LLAMA))}
    assert presets["attention"].kinds == {f"model.layers.*.self_attn.{name}_proj" for name in "qkvo"}
    assert presets["qv"].kinds == {f"model.layers.*.self_attn.{name}_proj" for name in "qv"}
    assert presets["mlp"].kinds == {f"model.layers.*.mlp.{name}_proj" for name in ("gate", "up")}
    assert presets[ALL_LINEAR].kinds is None
    fused = {
        preset.id: preset for preset in presets_of(kinds_of([matrix("h.*.attn.c_attn", 12, (768, 2304), "conv1d")]))
    }
    assert fused["attention"].kinds == {"h.*.attn.c_attn"}
    assert fused["qv"].reason == "queries and values are not matrices of their own"
    assert fused["mlp"].reason


def test_what_all_linear_stands_for_is_told_by_its_number() -> None:
    """With or without what is in no layer; unknown otherwise."""
    kinds = kinds_of(LLAMA)
    layered = {kind.pattern for kind in kinds if "*" in kind.pattern}
    assert all_linear_of(kinds, 192) == layered
    assert all_linear_of(kinds, 193) == layered | {"lm_head"}
    assert all_linear_of(kinds, 190) is None
    assert all_linear_of((), None) is None


def test_ticks_end_at_the_smaller_side() -> None:
    """Of the smallest matrix: more rank adds nothing to it."""
    assert ticks_of(kinds_of([matrix("a", 1, (384, 1536))])) == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert ticks_of(kinds_of([matrix("a", 1, (384, 1536)), matrix("b", 1, (4, 9))])) == (1, 2, 4)
    assert ticks_of(())[-1] == 64


def test_the_command_line_says_what_is_asked() -> None:
    """Word by word, with the quoting of a shell; defaults are left out."""
    plan = Plan("models/my base", rank=12)
    assert plan.command() == "lora-lab budget 'models/my base' --targets all-linear --rank 12"
    whole = Plan("b", targets="q_proj,v_proj", spent=1000, tasks=100, head=592_130, dora=True, lora_bias=True)
    assert shlex.split(whole.command()) == [
        *("lora-lab", "budget", "b", "--targets", "q_proj,v_proj", "--parameters", "1000"),
        *("--tasks", "100", "--head", "592130", "--dora", "--lora-bias"),
    ]
    assert shlex.split(Plan("b", targets="h.[0-9].x").command())[4] == "h.[0-9].x"
    asked = plan.arguments((1, 2, 4))["parameters"]
    assert asked["rank"] == [1, 2, 4, 12]
    assert "rank" not in whole.arguments((1, 2))["parameters"]


def test_numbers_in_words() -> None:
    """Undefined ones as well."""
    assert percent(None) == times(None) == "—"
    assert percent(0.01) == "1.00 %"
