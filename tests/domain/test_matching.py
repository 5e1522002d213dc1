"""Modules on weights: prefixes, ties, experts, clashes and suggestions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.domain.adapter import Adapter, Delta, DeltaKind
from lora_lab.domain.base import Base
from lora_lab.domain.dtypes import DType
from lora_lab.domain.matching import match_modules
from lora_lab.domain.tensors import FileStamp, TensorRef
from lora_lab.errors import CompatibilityError

STAMP = FileStamp("model.safetensors", 0, 0, 0, 0)
Shape = tuple[int, ...]


def ref(name: str, shape: Shape) -> TensorRef:
    return TensorRef(STAMP, name, DType.F32, shape, 0, 0)


def delta(module: str, shape: Shape, *, kind: DeltaKind = DeltaKind.LINEAR, **more: Any) -> Delta:
    a, b = ref(f"{module}.lora_A", (2, shape[-1])), ref(f"{module}.lora_B", (shape[0], 2))
    return Delta(module, kind, a, b, 2, 2.0, 1.0, shape, **more)


def adapter(modules: Mapping[str, Shape]) -> Adapter:
    deltas = tuple(delta(module, shape) for module, shape in modules.items())
    return Adapter("adapter", "adapter", "adapter", "peft", deltas, ())


def base(weights: Mapping[str, Shape], **configuration: Any) -> Base:
    return Base("base", "base", "base", {name: ref(name, shape) for name, shape in weights.items()}, (), configuration)


LAYERS = {
    f"encoder.layer.{layer}.attention.self.{projection}": (8, 6)
    for layer in (0, 1, 10)
    for projection in ("query", "value")
}


@pytest.mark.parametrize(
    ("front", "behind", "said"),
    [
        ("", "", ""),
        ("bert.", "", "bert. removed"),
        ("", "model.", "model. added"),
        ("model.language_model.", "language_model.model.", "model.language_model. replaced by language_model.model."),
    ],
)
def test_one_prefix_for_all(front: str, behind: str, said: str) -> None:
    """Every module lands on its own weight, and the change is told."""
    match = match_modules(
        adapter({front + path: shape for path, shape in LAYERS.items()}),
        base({f"{behind}{path}.weight": shape for path, shape in LAYERS.items()} | {"norm.weight": (6,)}),
    )
    assert {module: found.name for module, found in match.weights.items()} == {
        front + path: f"{behind}{path}.weight" for path in LAYERS
    }
    assert (match.prefix, match.unmatched, match.clashes) == (said, {}, ())
    assert match.path_in_base(front + "encoder.layer.1.x") == f"{behind}encoder.layer.1.x"


@given(layers=st.sets(st.integers(0, 30), min_size=2), prefix=st.sampled_from(["", "a", "a.b"]))
def test_numbers_are_never_confused(layers: set[int], prefix: str) -> None:
    """A layer's number is part of a module, whatever else could be cut off in front of it."""
    modules = {f"x.layers.{layer}.q": (4, 4) for layer in layers}
    weights = {f"{prefix}.layers.{layer}.q.weight".lstrip("."): (4, 4) for layer in range(31)}
    match = match_modules(adapter(modules), base(weights))
    assert {module: found.name for module, found in match.weights.items()} == {
        module: f"{prefix}.{module.removeprefix('x.')}.weight".lstrip(".") for module in modules
    }


def test_two_towers_are_refused_and_shapes_may_decide() -> None:
    """Text and vision towers of one shape are ambiguous; of two shapes they are not."""
    modules = adapter({"layers.0.q": (8, 8), "layers.1.q": (8, 8)})

    def towers(vision: Shape) -> Base:
        text = {f"text.layers.{layer}.q.weight": (8, 8) for layer in (0, 1)}
        return base({**text, **{f"vision.layers.{layer}.q.weight": vision for layer in (0, 1)}})

    with pytest.raises(CompatibilityError, match=r"'text\.layers\.0\.q'|'vision\.layers\.0\.q'"):
        match_modules(modules, towers((8, 8)))
    assert match_modules(modules, towers((6, 6))).added == "text"


def test_exact_names_win() -> None:
    """A module whose own path is there is not moved."""
    weights = {"layers.0.q.weight": (8, 8), "decoder.layers.0.q.weight": (8, 8)}
    match = match_modules(adapter({"layers.0.q": (8, 8)}), base(weights))
    assert match.weights["layers.0.q"].name == "layers.0.q.weight"


def test_clashes_and_strangers_are_told_apart() -> None:
    """Another shape is a clash with both shapes; what is not there has the base's own spelling beside it."""
    weights = {f"h.{layer}.attn.c_attn.weight": (6, 18) for layer in (0, 3)} | {"h.0.mlp.c_fc.weight": (6, 24)}
    match = match_modules(
        adapter({"h.0.attn.c_attn": (6, 18), "h.0.mlp.c_fc": (24, 6), "h.3.attn.q_attn": (6, 6)}), base(weights)
    )
    assert list(match.weights) == ["h.0.attn.c_attn"]
    (clash,) = match.clashes
    assert (clash.module, clash.expected, clash.got) == ("h.0.mlp.c_fc", (24, 6), (6, 24))
    assert match.unmatched == {"h.3.attn.q_attn": ("h.3.attn.c_attn",)}


def test_nothing_in_common() -> None:
    """A base of another architecture matches nothing and raises nothing."""
    match = match_modules(adapter(LAYERS), base({"blocks.0.conv.weight": (3, 3, 3, 3)}))
    assert not match.weights
    assert list(match.unmatched) == list(LAYERS)


@pytest.mark.parametrize(
    "configuration", [{"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}]
)
def test_tied_output_layer(configuration: dict[str, Any]) -> None:
    """The output layer that is not in the file is the embedding, when the base says that they are tied."""
    weights = {"model.embed_tokens.weight": (32, 8), "model.layers.0.q.weight": (32, 8)}
    modules = adapter({"lm_head": (32, 8), "model.layers.0.q": (32, 8)})
    assert match_modules(modules, base(weights, **configuration)).weights["lm_head"].name == "model.embed_tokens.weight"
    assert "lm_head" in match_modules(modules, base(weights)).unmatched


@pytest.mark.parametrize("sides", [(8, 12), (12, 8)])
def test_experts_share_one_tensor(sides: Shape) -> None:
    """Each expert is matched with the tensor of all of them, in either orientation."""
    deltas = tuple(
        delta(f"mlp.experts.down_proj[{expert}]", (8, 12), kind=DeltaKind.EXPERTS, experts=3, expert=expert)
        for expert in range(3)
    )
    experts = Adapter("adapter", "adapter", "adapter", "peft", deltas, ())
    match = match_modules(experts, base({"mlp.experts.down_proj": (3, *sides)}))
    assert {found.name for found in match.weights.values()} == {"mlp.experts.down_proj"}
    assert len(match.weights) == 3
    assert len(match_modules(experts, base({"mlp.experts.down_proj": (4, *sides)})).clashes) == 3
