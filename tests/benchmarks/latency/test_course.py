"""What is run: the grid, the layers and the rounds that two minutes are enough for; the shapes of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab import Session
from lora_lab.benchmarks.latency.adapters import HOULSBY, PFEIFFER
from lora_lab.benchmarks.latency.blocks import GPT2_MEDIUM, BlockShape
from lora_lab.benchmarks.latency.grid import BUDGET_SECONDS, FEWEST, PAPER_GRID, Cell, Speed, cells_of, course_of
from lora_lab.benchmarks.latency.published import TABLE_1
from lora_lab.benchmarks.latency.shapes import block_shape_of, dtype_of
from lora_lab.domain.base import Base
from lora_lab.domain.dtypes import DType
from lora_lab.domain.tensors import FileStamp, TensorRef
from lora_lab.errors import CompatibilityError, LoraLabError

STAMP = FileStamp("model.safetensors", 0)
SPEEDS = st.builds(Speed, st.floats(1e-6, 1e-2), st.floats(-15.0, -9.0).map(lambda exponent: float(10.0**exponent)))


@given(SPEEDS, st.booleans(), st.sampled_from([None, 1, 3, 24]), st.sampled_from([(), (Cell(2, 64), Cell(1, 8))]))
def test_what_is_chosen_ends_in_time_and_what_is_given_stays(
    speed: Speed, may_cut: bool, layers: int | None, cells: tuple[Cell, ...]
) -> None:
    """Whatever the speed; where it cannot end in time nothing but the least is run."""
    course = course_of(GPT2_MEDIUM, speed, whole=24, variants=5, may_cut=may_cut, cells=cells, layers=layers)
    assert layers in (None, course.layers)
    assert course.cells == cells or not cells
    assert 1 <= course.layers <= 24
    assert all(FEWEST <= count <= 100 for count in course.repeats)
    assert len(course.repeats) == len(course.cells)
    if course.seconds > BUDGET_SECONDS:
        assert set(course.repeats) == {FEWEST}
        assert not may_cut or ((cells or course.cells[0].tokens == 128) and (layers or course.layers == 1))
    if not may_cut:
        assert (course.cells, course.layers) == (cells or PAPER_GRID, layers or 24)


def test_a_faster_machine_gets_more() -> None:
    """By hand: the paper's grid is 20 992 tokens, 25.6 MFLOP a token and layer beside attention."""
    courses = [
        course_of(GPT2_MEDIUM, Speed(0.0, 1 / rate), whole=24, variants=5, may_cut=True)
        for rate in (1e13, 1e12, 1e11, 1e10)
    ]
    assert (courses[0].cells, courses[0].layers) == (PAPER_GRID, 24)
    work = [course.layers * sum(cell.tokens for cell in course.cells) for course in courses]
    assert work == sorted(work, reverse=True)
    assert courses[3].seconds <= BUDGET_SECONDS
    assert course_of(GPT2_MEDIUM, Speed(0.0, 1e-9), whole=24, variants=5, may_cut=True, repeats=3).repeats == (3, 3)


def test_a_grid_is_read_or_refused() -> None:
    """One cell twice is one cell."""
    assert cells_of("32x512, 1×128,32x512") == (Cell(32, 512), Cell(1, 128))
    for wrong in ("32", "0x5", "5x0", "axb", "1x2x3", "1x128,", "-1x5"):
        with pytest.raises(LoraLabError, match="BATCHxLENGTH"):
            cells_of(wrong)


def test_the_published_overheads_are_the_papers() -> None:
    """Its own percentages, as printed."""
    printed = {Cell(32, 512): (2.2, 3.0), Cell(16, 256): (5.0, 8.4), Cell(1, 128): (20.7, 30.3)}
    for cell, (pfeiffer, houlsby) in printed.items():
        found = [TABLE_1[cell].overhead(variant) for variant in (PFEIFFER, HOULSBY)]
        assert [round(100 * (one or 0.0), 1) for one in found] == [pytest.approx(pfeiffer, abs=0.11), houlsby]
        assert TABLE_1[cell].overhead("lora_unmerged") is None


def base_of(configuration: dict[str, Any], *tensors: TensorRef) -> Base:
    """A base that is its configuration and headers."""
    return Base("model", "model", "model", {one.name: one for one in tensors}, (STAMP,), configuration)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 16,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "gpt2-medium": (
        {"model_type": "gpt2", "n_embd": 1024, "n_head": 16, "n_layer": 24, "vocab_size": 50257},
        (1024, 16, 16, 64, 4096, False),
        24,
    ),
    "llama-3.2-1b": (LLAMA, (2048, 32, 8, 64, 8192, True), 16),
    "qwen2.5-0.5b": (
        {**LLAMA, "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14}
        | {"num_key_value_heads": 2, "num_hidden_layers": 24},
        (896, 14, 2, 64, 4864, True),
        24,
    ),
    "gemma-2-2b": (
        {**LLAMA, "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8}
        | {"num_key_value_heads": 4, "num_hidden_layers": 26, "head_dim": 256},
        (2304, 8, 4, 256, 9216, True),
        26,
    ),
    "phi-3-mini": (
        {**LLAMA, "model_type": "phi3", "hidden_size": 3072, "num_key_value_heads": 32, "num_hidden_layers": 32},
        (3072, 32, 32, 96, 8192, True),
        32,
    ),
    "falcon-7b": (
        {"model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32}
        | {"vocab_size": 65024},
        (4544, 71, 1, 64, 18176, False),
        32,
    ),
    "pythia-1b": (
        {"model_type": "gpt_neox", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 8}
        | {"num_hidden_layers": 16, "vocab_size": 50304},
        (2048, 8, 8, 256, 8192, False),
        16,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_block_of_a_model_follows_from_its_configuration(name: str) -> None:
    """Sizes from the models' own cards."""
    configuration, sizes, layers = MODELS[name]
    hidden, heads, kv_heads, head_dim, inner, is_gated = sizes
    right = BlockShape(hidden, heads, kv_heads, head_dim, inner, is_gated=bool(is_gated), has_bias=not is_gated)
    assert block_shape_of(base_of(configuration)) == (right, layers)
    if name == "gpt2-medium":
        assert right == GPT2_MEDIUM


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bert"}, "expected a decoder"),
        ({"model_type": "mamba"}, "'mamba'"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "mixture of experts"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"num_attention_heads": 24, "head_dim": 64, "num_key_value_heads": 5}, "heads"),
        ({"num_hidden_layers": 0}, "no blocks"),
    ],
)
def test_what_cannot_be_known_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(CompatibilityError, match=said):
        block_shape_of(base_of({**LLAMA, **change}))
    with pytest.raises(CompatibilityError, match=r"no config\.json"):
        block_shape_of(base_of({}))


def test_the_dtype_is_that_of_most_numbers() -> None:
    """Of the file, else of the configuration; a packed one is refused."""
    large = TensorRef(STAMP, "a", DType.F16, (8, 8), 0, 128)
    small = TensorRef(STAMP, "b", DType.F32, (2, 2), 128, 144)
    assert dtype_of(base_of(LLAMA, small, large)) == "float16"
    assert dtype_of(base_of(LLAMA)) == "bfloat16"
    for wrong in (base_of({}), base_of(LLAMA, TensorRef(STAMP, "a", DType.U8, (8, 8), 0, 128))):
        with pytest.raises(CompatibilityError, match="dtype"):
            dtype_of(wrong)


def test_a_config_json_alone_is_enough(tmp_path: Path) -> None:
    """No weights are read."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    assert block_shape_of(Session(cache=False).base(str(path)))[1] == 16
