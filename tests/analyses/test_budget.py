"""What LoRA costs: the literature's counts, PEFT's own, and shapes from files, configurations and by hand."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from lora_lab import Session
from lora_lab.analyses.budget import Budget
from lora_lab.analyses.budget_shapes import given_matrix
from lora_lab.domain.adapter import Adapter
from lora_lab.domain.base import Base
from lora_lab.domain.dtypes import DType
from lora_lab.domain.parameters import parse_parameters
from lora_lab.domain.report import Report
from lora_lab.domain.tensors import FileStamp, TensorRef
from lora_lab.errors import AdapterError, CompatibilityError, LoraLabError
from lora_lab.extension.contracts import Analysis, AnalysisContext

STAMP = FileStamp("model.safetensors", 0, 0, 0, 0)
GPT3 = 175_000_000_000
DISTILBERT = {"model_type": "distilbert", "architectures": ["DistilBertForSequenceClassification"]}
BERT = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
HEAD = 592_130  # 768·768 + 768 + 2·768 + 2


def configured(configuration: Mapping[str, Any]) -> Base:
    return Base("mine", "mine", "mine", {}, (), configuration)


def stored(
    shapes: Mapping[str, tuple[int, ...]], *, dtype: DType = DType.BF16, configuration: Mapping[str, Any] | None = None
) -> Base:
    tensors = {name: TensorRef(STAMP, name, dtype, shape, 0, 0) for name, shape in shapes.items()}
    return Base("mine", "mine", "mine", tensors, (STAMP,), configuration or {})


def budget(subject: Any = None, *, modules: Sequence[str] = (), **values: Any) -> Report:
    analysis = Budget()
    context = AnalysisContext(
        subjects=() if subject is None else (subject,),
        reader=None,  # type: ignore[arg-type] # nothing is read
        parameters=parse_parameters(analysis.parameters, values),
        modules=tuple(modules),
    )
    return analysis.run(context)


def row(subject: Any = None, **values: Any) -> Mapping[str, Any]:
    (only,) = budget(subject, **values).table("rows").rows
    return only


class TestGolden:
    """The counts of the LoRA literature."""

    TWO = ("W_q=96x12288x12288", "W_v=96x12288x12288")

    @pytest.mark.parametrize(("rank", "parameters"), [(4, 18_874_368), (1, 4_718_592)])
    def test_gpt3(self, rank: int, parameters: int) -> None:
        assert row(matrix=self.TWO, rank=rank)["parameters"] == parameters

    def test_gpt3_bytes(self) -> None:
        found = row(matrix=self.TWO, rank=4)
        assert found["matrices"] == 192
        assert found["bytes"] == 37_748_736
        assert round(found["bytes"] / 1e6, 2) == 37.75

    def test_one_matrix_of_gpt3_is_1536_times_smaller(self) -> None:
        assert row(matrix=["1x12288x12288"], rank=4)["compression"] == 1536

    @pytest.mark.parametrize(("types", "rank"), [(1, 8), (2, 4), (4, 2)])
    def test_what_18_million_buy(self, types: int, rank: int) -> None:
        matrices = [f"W_{name}=96x12288x12288" for name in "qkvo"[:types]]
        bought, beyond = budget(matrix=matrices, parameters=18_874_368).table("rows").rows
        assert (bought["rank"], bought["parameters"]) == (rank, 18_874_368)
        assert beyond["rank"] == rank + 1

    def test_a_hundred_tasks(self) -> None:
        found = row(matrix=self.TWO, rank=4, tasks=100, model_parameters=GPT3)
        assert found["full_bytes_for_tasks"] == 35 * 10**12
        assert found["bytes_for_tasks"] - 350 * 10**9 == 100 * 37_748_736
        assert round(100 * round(37_748_736 / 1e6, 2) / 1e3, 3) == 3.775  # which is printed as 3.78 GB

    def test_training_memory(self) -> None:
        """By count, 2 bytes a frozen parameter and 16 a trained one; the paper measured 1.2 TB and 350 GB."""
        found = row(matrix=self.TWO, rank=4, model_parameters=GPT3)
        assert found["training_bytes"] == 2 * GPT3 + 16 * 18_874_368
        assert round(found["training_bytes"] / 1e9) == 350
        assert found["full_training_bytes"] == 16 * GPT3
        assert found["full_training_bytes"] / found["training_bytes"] > 1.2e12 / 350e9

    def test_gpt3_s_own_configuration(self) -> None:
        """GPT-3 has GPT-2's layers; its 350 GB follow from its sizes."""
        sizes = {"n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 2048, "vocab_size": 50257}
        report = budget(configured({"model_type": "gpt2", **sizes}), targets=["c_attn"], rank=4)
        found = report.to_json()
        assert round(found["model_parameters"] / 1e9) == 175
        assert math.ceil(found["model_bytes"] / 1e9) == 350
        assert found["rows"][0]["parameters"] == 96 * 4 * (12288 + 3 * 12288)

    @pytest.mark.parametrize(
        ("side", "rank", "whole", "parameters"),
        [(4096, 8, 16_777_216, 65_536), (768, 8, 589_824, 12_288), (768, 4, 589_824, 6_144), (768, 1, 589_824, 1_536)],
    )
    def test_square_matrices(self, side: int, rank: int, whole: int, parameters: int) -> None:
        report = budget(matrix=[f"1x{side}x{side}"], rank=rank)
        (found,) = report.table("rows").rows
        assert report.to_json()["model_parameters"] == whole
        assert found["parameters"] == parameters

    def test_shares(self) -> None:
        assert round(100 * (1 - row(matrix=["1x4096x4096"], rank=8)["share"]), 2) == 99.61
        assert round(100 * row(matrix=["1x768x768"], rank=4)["share"], 2) == 1.04

    def test_bert_base(self) -> None:
        targets = "query,key,value,attention.output.dense"
        assert row(configured(BERT), targets=[targets], rank=8)["parameters"] == 589_824

    @pytest.mark.parametrize(
        ("targets", "rank", "parameters", "trained"),
        [
            ("q_lin,v_lin", 4, 73_728, 665_858),
            ("q_lin,v_lin", 8, 147_456, 739_586),
            ("q_lin,v_lin", 16, 294_912, 887_042),
            ("q_lin,k_lin,v_lin,out_lin", 8, 294_912, 887_042),
            ("q_lin,k_lin,v_lin,out_lin,lin1,lin2", 8, 663_552, 1_255_682),
        ],
    )
    def test_distilbert(self, targets: str, rank: int, parameters: int, trained: int) -> None:
        found = row(configured(DISTILBERT), targets=[targets], rank=rank, head=HEAD)
        assert (found["parameters"], found["trained"]) == (parameters, trained)


def trainable(model: torch.nn.Module, **settings: Any) -> int:
    """PEFT's own count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))  # type: ignore[arg-type]
    return wrapped.get_nb_trainable_parameters()[0]


def small(family: str, head: str, **settings: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    config = getattr(transformers, f"{family}Config")(**settings)
    with torch.device("meta"):
        model = getattr(transformers, f"{family}{head}")(config)
    return model, {**json.loads(config.to_json_string(use_diff=False)), "architectures": [type(model).__name__]}


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 20}
LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "vocab_size": 96,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
OF_PEFT: list[tuple[str, str, dict[str, Any], str, dict[str, Any]]] = [
    ("Llama", "ForCausalLM", LLAMA, "q_proj,v_proj", {}),
    ("Llama", "ForCausalLM", LLAMA, "all-linear", {}),
    ("Llama", "ForCausalLM", LLAMA, "embed_tokens,lm_head,up_proj", {}),
    ("Llama", "ForCausalLM", {**LLAMA, "tie_word_embeddings": True}, "lm_head,down_proj", {}),
    ("Llama", "ForSequenceClassification", LLAMA, "all-linear", {"task_type": "SEQ_CLS"}),
    ("Llama", "ForCausalLM", LLAMA, "all-linear", {"use_dora": True}),
    ("Llama", "ForCausalLM", LLAMA, "o_proj,gate_proj", {"lora_bias": True}),
    ("GPT2", "LMHeadModel", GPT2, "c_attn", {"fan_in_fan_out": True}),
    ("GPT2", "LMHeadModel", GPT2, "all-linear", {"fan_in_fan_out": True}),
    ("GPT2", "LMHeadModel", GPT2, "wte,wpe,c_fc", {"fan_in_fan_out": True, "use_dora": True}),
    ("Phi3", "ForCausalLM", {**LLAMA, "pad_token_id": 0}, "qkv_proj,gate_up_proj", {}),
    ("GPTNeoX", "ForCausalLM", LLAMA, "query_key_value", {}),
    ("Bert", "ForMaskedLM", {**LLAMA, "max_position_embeddings": 20}, "all-linear", {}),
    ("Roberta", "ForSequenceClassification", LLAMA, "all-linear", {"task_type": "SEQ_CLS"}),
    ("ViT", "ForImageClassification", {**LLAMA, "image_size": 32, "patch_size": 8}, "projection,q_proj", {}),
    ("ViT", "ForImageClassification", {**LLAMA, "image_size": 32, "patch_size": 8}, "projection", {"use_dora": True}),
    ("T5", "ForConditionalGeneration", {"d_model": 32, "d_kv": 6, "d_ff": 40, "num_heads": 4}, "q,wo", {}),
    ("T5", "ForConditionalGeneration", {"d_model": 32, "d_kv": 6, "d_ff": 40, "num_heads": 4}, "all-linear", {}),
]


@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize(("family", "head", "settings", "targets", "lora"), OF_PEFT)
def test_the_count_is_peft_s(
    family: str, head: str, settings: dict[str, Any], targets: str, lora: dict[str, Any], rank: int
) -> None:
    """From the configuration, and from the headers of the same model with and without its configuration."""
    model, document = small(family, head, **settings)
    parameters = dict(model.named_parameters(remove_duplicate=True))
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    names = targets if targets == "all-linear" else targets.split(",")
    expected = trainable(model, r=rank, target_modules=names, **{"task_type": None, **lora})
    head_size = sum(p.numel() for name, p in parameters.items() if name.startswith(("score.", "classifier.")))
    if lora.get("task_type") == "SEQ_CLS":  # PEFT trains the classifier besides
        expected -= head_size
    values = {
        "targets": [targets],
        "rank": rank,
        "dora": lora.get("use_dora", False),
        "lora_bias": lora.get("lora_bias", False),
    }
    assert row(configured(document), **values)["parameters"] == expected
    assert row(stored(shapes, configuration=document), **values)["parameters"] == expected
    if not settings.get("tie_word_embeddings"):
        assert row(stored(shapes), **values)["parameters"] == expected


EXPERTS = [
    ("Mixtral", {**LLAMA, "num_local_experts": 4}),
    ("Qwen3Moe", {**LLAMA, "num_experts": 5, "moe_intermediate_size": 24}),
]


@pytest.mark.parametrize(("family", "settings"), EXPERTS)
def test_experts_are_counted_as_peft_counts_them(family: str, settings: dict[str, Any]) -> None:
    """Named, every expert has the rank; with all-linear, gate and up have it each."""
    model, document = small(family, "ForCausalLM", **settings)
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    expected = trainable(model, r=3, target_modules=[], target_parameters=names)
    report = budget(configured(document), targets=[",".join(names)], rank=3)
    assert report.table("rows").rows[0]["parameters"] == expected
    assert "fused_experts" not in [finding.code for finding in report.findings]
    model, _ = small(family, "ForCausalLM", **settings)
    report = budget(configured(document), targets=["all-linear"], rank=3)
    assert report.table("rows").rows[0]["parameters"] == trainable(model, r=3, target_modules="all-linear")
    assert "fused_experts" in [finding.code for finding in report.findings]


def test_an_embedding_has_no_bias_of_lora_b() -> None:
    """PEFT refuses one; the biases counted are those of the linear layers."""
    plain = row(stored(SHAPES), targets=["q_proj,embed_tokens"], rank=1)["parameters"]
    assert row(stored(SHAPES), targets=["q_proj,embed_tokens"], rank=1, lora_bias=True)["parameters"] == plain + 3 * 8


def test_experts_of_a_file_are_counted_one_by_one() -> None:
    shapes = {f"layers.0.experts.{expert}.w{which}.weight": (6, 8) for expert in range(3) for which in (1, 2)}
    report = budget(stored(shapes), rank=2)
    assert report.table("rows").rows[0]["parameters"] == 6 * 2 * 14
    assert [finding.code for finding in report.findings] == ["experts_apart"]
    assert report.table("matrices").rows[0]["count"] == 3


def test_the_sample_adapters_cost_what_the_budget_says(samples: Path) -> None:
    session = Session()
    base = session.base(str(samples / "base"))
    for name, rank in (("banking77-r8-seed0", 8), ("banking77-r64-seed0", 64)):
        adapter = session.adapter(str(samples / name))
        found = row(base, targets=["all-linear"], rank=rank)
        assert found["parameters"] == adapter.parameters
        assert found["matrices"] == len(adapter.deltas)
    dora = session.adapter(str(samples / "banking77-dora"))
    magnitudes = sum(delta.magnitude.elements for delta in dora.deltas if delta.magnitude)
    assert row(base, rank=8, dora=True)["parameters"] == dora.parameters + magnitudes
    config = row(configured(json.loads((samples / "base" / "config.json").read_text())), rank=8)
    assert config == row(base, rank=8)


def test_headers_and_configuration_agree(samples: Path) -> None:
    base = Session().base(str(samples / "base"))
    of_file, of_config = budget(base).to_json(), budget(configured(base.configuration)).to_json()
    assert of_file["rows"] == of_config["rows"]
    assert of_file["model_parameters"] == of_config["model_parameters"] == base.parameters
    assert of_file["matrices"] == of_config["matrices"]
    assert (of_file["shapes_from"], of_config["shapes_from"]) == ("tensors", "configuration")


MATRICES = st.lists(st.tuples(*[st.integers(1, 10**6)] * 3), min_size=1, max_size=5)


@given(MATRICES, st.integers(1, 10**15))
def test_a_bought_rank_costs_no_more_and_the_next_does(matrices: list[tuple[int, ...]], wanted: int) -> None:
    texts = ["x".join(map(str, matrix)) for matrix in matrices]
    rows = budget(matrix=texts, parameters=wanted).table("rows").rows
    unit = sum(count * (outputs + inputs) for count, outputs, inputs in matrices)
    assert [found["parameters"] for found in rows] == [found["rank"] * unit for found in rows]
    if unit > wanted:
        assert [found["rank"] for found in rows] == [1]
    else:
        assert rows[0]["parameters"] <= wanted < rows[1]["parameters"]
        assert rows[1]["rank"] == rows[0]["rank"] + 1


@given(MATRICES, st.integers(1, 2**20), st.integers(1, 10**6), st.integers(0, 10**9))
def test_every_figure_is_exact(matrices: list[tuple[int, ...]], rank: int, tasks: int, head: int) -> None:
    texts = ["x".join(map(str, matrix)) for matrix in matrices]
    found = row(matrix=texts, rank=rank, tasks=tasks, head=head, model_parameters=GPT3)
    parameters = rank * sum(count * (outputs + inputs) for count, outputs, inputs in matrices)
    whole = sum(count * outputs * inputs for count, outputs, inputs in matrices)
    assert found == {
        "targets": "*",
        "matrices": sum(count for count, _, _ in matrices),
        "rank": rank,
        "parameters": parameters,
        "trained": parameters + head,
        "share": parameters / GPT3,
        "bytes": 2 * parameters,
        "compression": whole / parameters,
        "bytes_for_tasks": 2 * (GPT3 + tasks * (parameters + head)),
        "full_bytes_for_tasks": 2 * tasks * (GPT3 + head),
        "training_bytes": 2 * GPT3 + 16 * (parameters + head),
        "full_training_bytes": 16 * (GPT3 + head),
    }


SHAPES = {
    "model.embed_tokens.weight": (50, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.mlp.experts.down_proj": (3, 8, 6),
    "model.layers.0.norm.weight": (8,),
    "model.layers.1.self_attn.q_proj.weight": (8, 8),
    "model.layers.1.self_attn.k_proj.weight": (4, 8),
    "model.layers.10.self_attn.q_proj.weight": (8, 8),
    "vision.patch.weight": (6, 3, 2, 2),
    "lm_head.weight": (50, 8),
}


class TestTargets:
    """Names, ends of names, globs, and what happens when there is none."""

    @pytest.mark.parametrize(
        ("targets", "expected"),
        [
            ("q_proj", 3 * 16),
            ("self_attn.q_proj", 3 * 16),
            ("roj", None),
            ("model.layers.1.*", 16 + 12),
            ("q_proj, k_proj", 3 * 16 + 2 * 12),
            ("q_proj,model.layers.0.self_attn.q_proj", 3 * 16),
            ("all-linear", 3 * 16 + 2 * 12 + 3 * 14),
            ("All-Linear,embed_tokens", 3 * 16 + 2 * 12 + 3 * 14 + 58),
            ("down_proj", 3 * 14),
            ("patch", 6 + 12),
            ("norm", None),
            ("lm_head", 58),
            (",", None),
        ],
    )
    def test_a_set_is_one_row(self, targets: str, expected: int | None) -> None:
        if expected is None:
            with pytest.raises(CompatibilityError, match=r"No matrix of 'mine' matches .*, expected one of: .*q_proj"):
                row(stored(SHAPES), targets=[targets], rank=1)
        else:
            assert row(stored(SHAPES), targets=[targets], rank=1)["parameters"] == expected

    def test_several_sets_and_ranks_are_several_rows(self) -> None:
        rows = budget(stored(SHAPES), targets=["q_proj", "k_proj"], rank=[2, 1]).table("rows").rows
        assert [(found["targets"], found["rank"]) for found in rows] == [
            ("q_proj", 2),
            ("q_proj", 1),
            ("k_proj", 2),
            ("k_proj", 1),
        ]

    def test_without_any_it_is_all_linear_at_the_usual_ranks(self) -> None:
        rows = budget(stored(SHAPES)).table("rows").rows
        assert {found["targets"] for found in rows} == {"all-linear"}
        assert [found["rank"] for found in rows] == [1, 2, 4, 8, 16, 32, 64]

    def test_a_part_that_matches_nothing_is_told(self) -> None:
        report = budget(stored(SHAPES), targets=["q_proj,qkv"], rank=1)
        assert [finding.code for finding in report.findings] == ["target_unmatched"]
        assert "'qkv'" in report.findings[0].message

    def test_modules_restrict(self) -> None:
        report = budget(stored(SHAPES), modules=["model.layers.1.*"], rank=1)
        assert report.table("rows").rows[0]["parameters"] == 16 + 12
        assert report.to_json()["model_parameters"] == sum(math.prod(shape) for shape in SHAPES.values())


class TestModel:
    """What a file or a configuration says of the model."""

    def test_kinds_of_matrices_are_gathered(self) -> None:
        rows = budget(stored(SHAPES)).table("matrices").rows
        assert [(found["module"], found["count"], found["shape"], found["kind"]) for found in rows] == [
            ("lm_head", 1, [50, 8], "linear"),
            ("model.embed_tokens", 1, [50, 8], "embedding"),
            ("model.layers.*.mlp.experts.down_proj", 3, [3, 8, 6], "experts"),
            ("model.layers.*.self_attn.k_proj", 2, [4, 8], "linear"),
            ("model.layers.*.self_attn.q_proj", 3, [8, 8], "linear"),
            ("vision.patch", 1, [6, 3, 2, 2], "conv"),
        ]
        assert [found["parameters_per_rank"] for found in rows] == [58, 58, 42, 24, 48, 18]
        assert rows[2]["elements"] == 3 * 8 * 6

    @pytest.mark.parametrize(
        ("dtype", "width"), [(DType.F32, 4), (DType.BF16, 2), (DType.F16, 2), (DType.F8_E4M3, 2), (DType.F64, 8)]
    )
    def test_bytes_are_those_of_the_base_s_dtype(self, dtype: DType, width: int) -> None:
        report = budget(stored(SHAPES, dtype=dtype), targets=["q_proj"], rank=1)
        assert report.table("rows").rows[0]["bytes"] == 48 * width
        assert report.to_json()["dtype"] == dtype.value
        assert report.to_json()["bytes_per_parameter"] == width

    @pytest.mark.parametrize(
        ("said", "width"),
        [({}, 2), ({"torch_dtype": "float32"}, 4), ({"dtype": "bfloat16"}, 2), ({"torch_dtype": "torch.float16"}, 2)],
    )
    def test_a_configuration_s_dtype(self, said: dict[str, str], width: int) -> None:
        report = budget(configured({**BERT, **said}), rank=1)
        assert report.to_json()["bytes_per_parameter"] == width
        assert [finding.code for finding in report.findings] == ([] if said else ["dtype_assumed"])

    def test_an_old_gpt2_file(self) -> None:
        """Names without the body's prefix, Conv1D, masks that are no parameters, and the tied output not stored."""
        model, document = small("GPT2", "LMHeadModel", **GPT2)
        shapes = {
            name.removeprefix("transformer."): tuple(parameter.shape) for name, parameter in model.named_parameters()
        }
        report = budget(
            stored({**shapes, "h.0.attn.bias": (1, 1, 20, 20)}, configuration=document), targets=["all-linear"], rank=2
        )
        assert report.to_json()["model_parameters"] == sum(p.numel() for p in model.parameters())
        assert [finding.code for finding in report.findings] == ["buffers_left_out"]
        assert report.table("rows").rows[0]["parameters"] == trainable(
            model, r=2, target_modules="all-linear", fan_in_fan_out=True
        )
        kinds = {found["module"]: found["kind"] for found in report.table("matrices").rows}
        assert (kinds["h.*.attn.c_attn"], kinds["wte"], kinds["lm_head"]) == ("conv1d", "embedding", "linear")

    def test_a_stored_copy_of_a_tied_weight_counts_once(self) -> None:
        model, document = small("Llama", "ForCausalLM", **LLAMA, tie_word_embeddings=True)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
        report = budget(stored(shapes, configuration=document), rank=1)
        assert report.to_json()["model_parameters"] == sum(p.numel() for p in model.parameters())
        assert [finding.code for finding in report.findings] == ["tied_weights_stored"]

    def test_a_configuration_that_does_not_fit_the_file_is_not_believed(self) -> None:
        other = {**LLAMA, "model_type": "llama", "hidden_size": 64}
        assert row(stored(SHAPES, configuration=other), targets=["q_proj"], rank=1)["parameters"] == 48

    def test_a_quantised_base_has_its_configuration_s_shapes(self) -> None:
        model, document = small("Llama", "ForCausalLM", **LLAMA)
        shapes = {name: (math.prod(p.shape) // 2, 1) for name, p in model.named_parameters()}
        report = budget(stored(shapes, dtype=DType.U8, configuration=document), targets=["q_proj,v_proj"], rank=4)
        assert "quantised" in [finding.code for finding in report.findings]
        expected = trainable(model, r=4, target_modules=["q_proj", "v_proj"])
        assert report.table("rows").rows[0]["parameters"] == expected

    def test_a_quantised_base_of_an_unknown_family_is_refused(self) -> None:
        packed = {"h.0.q_proj.qweight": (8, 8)}
        with pytest.raises(CompatibilityError, match=r"is quantised: 'h\.0.q_proj\.qweight' packs several"):
            budget(stored(packed, dtype=DType.I32))

    def test_a_head_that_is_not_known_is_told(self) -> None:
        report = budget(configured({**BERT, "architectures": ["BertForRocketScience"], "dtype": "float32"}), rank=1)
        assert [finding.code for finding in report.findings] == ["head_unknown"]

    def test_an_unknown_family(self) -> None:
        with pytest.raises(CompatibilityError, match=r"'mine' has the model_type 'rocket', expected one of: bart,"):
            budget(configured({"model_type": "rocket"}))


class TestGiven:
    """Matrices by hand."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("96x12288x12288", ("matrix3", 96, 12288, 12288)),
            ("W_q=2x3x5", ("W_q", 2, 3, 5)),
            (" up proj = 1×3×5 ", None),
            ("up=1×3×5", ("up", 1, 3, 5)),
        ],
    )
    def test_what_is_understood(self, text: str, expected: tuple[str, int, int, int] | None) -> None:
        if expected is None:
            with pytest.raises(LoraLabError):
                given_matrix(text, 3)
        else:
            found = given_matrix(text, 3)
            assert (found.module, found.count, found.outputs, found.inputs) == expected

    @pytest.mark.parametrize(
        "text", ["", "3x5", "0x3x5", "1x0x5", "-1x3x5", "axbxc", "1x2x3x4", "=1x2x3", "1x" + "9" * 40]
    )
    def test_what_is_not(self, text: str) -> None:
        with pytest.raises(LoraLabError, match="expected COUNTxOUTxIN or NAME=COUNTxOUTxIN"):
            given_matrix(text)

    def test_two_of_one_name(self) -> None:
        with pytest.raises(LoraLabError, match="'q' is given 2 times"):
            budget(matrix=["q=1x2x3", "q=1x2x3"])

    def test_the_rest_of_the_model_is_asked_for(self) -> None:
        assert [finding.code for finding in budget(matrix=["1x2x3"], rank=1).findings] == ["model_size_unknown"]
        assert not budget(matrix=["1x2x3"], rank=1, model_parameters=100).findings

    def test_a_model_gives_the_rest(self) -> None:
        found = budget(stored(SHAPES, dtype=DType.F32), matrix=["q=3x8x8"], targets=["q"], rank=1)
        assert found.table("rows").rows[0]["parameters"] == 48
        assert found.to_json()["model_parameters"] == sum(math.prod(shape) for shape in SHAPES.values())
        assert found.to_json()["bytes_per_parameter"] == 4

    def test_an_unknown_family_with_matrices(self) -> None:
        found = budget(configured({"model_type": "rocket"}), matrix=["q=3x8x8"], rank=1)
        assert found.table("rows").rows[0]["parameters"] == 48


class TestRefusals:
    """What cannot be counted, one sentence each."""

    def test_nothing_to_count(self) -> None:
        with pytest.raises(CompatibilityError, match="There is no model to take shapes from"):
            budget()

    def test_an_adapter(self) -> None:
        with pytest.raises(AdapterError, match="'a' is an adapter, expected a base model"):
            budget(Adapter("a", "a", "a", "peft", (), ()))

    def test_rank_and_parameters(self) -> None:
        with pytest.raises(LoraLabError, match="Both a rank and a number of parameters"):
            budget(matrix=["1x2x3"], rank=1, parameters=5)

    def test_dora_and_biases(self) -> None:
        with pytest.raises(LoraLabError, match="Both dora and lora_bias"):
            budget(matrix=["1x2x3"], dora=True, lora_bias=True)

    def test_too_few_parameters(self) -> None:
        report = budget(matrix=["q=1x20x30"], parameters=49, model_parameters=600)
        assert [found["rank"] for found in report.table("rows").rows] == [1]
        assert [finding.code for finding in report.findings] == ["nothing_bought"]
        assert "rank 1 takes 50" in report.findings[0].message

    def test_a_rank_above_the_smaller_side(self) -> None:
        report = budget(matrix=["q=1x20x30", "k=1x4x30"], rank=[4, 5], model_parameters=720)
        assert [(finding.code, finding.module) for finding in report.findings] == [("rank_over_side", "k")]


def test_every_quantity_is_declared() -> None:
    report = budget(stored(SHAPES), rank=1)
    assert isinstance(Budget(), Analysis)
    for table in report.tables:
        declared = [column.id for column in table.columns]
        assert all(list(found) == declared for found in table.rows)
        assert all(column.title for column in table.columns)
    assert set(report.scalars[0].values) == {column.id for column in report.scalars[0].columns}
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    promised = {"targets", "rank", "parameters", "share", "bytes", "compression", "bytes_for_tasks", "training_bytes"}
    assert promised <= set(document["rows"][0])
