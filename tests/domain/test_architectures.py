"""Shapes from a config.json alone, against transformers' own models on the meta device."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
import transformers

from lora_lab.domain.architectures import Architecture, architecture_of, known_families
from lora_lab.domain.sheet import Weight, WeightKind
from lora_lab.errors import CompatibilityError

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 96, "intermediate_size": 48, "num_attention_heads": 4}
GROUPED = {**TINY, "num_key_value_heads": 2}
BERT = {**TINY, "max_position_embeddings": 20, "type_vocab_size": 3}
TINY_T5 = {
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "vocab_size": 96,
}
TINY_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 20}
SIDES = {
    "d_model": 32,
    "vocab_size": 96,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "pad_token_id": 0,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WHISPER = {**SIDES, **TOKENS, "decoder_start_token_id": 1, "max_source_positions": 30, "max_target_positions": 20}
DEBERTA = {**BERT, "type_vocab_size": 0, "pooler_hidden_size": 32}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}
MOE = {**GROUPED, "num_hidden_layers": 3, "moe_intermediate_size": 24, "num_experts": 5, "decoder_sparse_step": 2}

CLASSES = {"Gemma3Text": "Gemma3"}  # where configuration and model have different names

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("Llama", "ForCausalLM", GROUPED),
    ("Llama", "ForCausalLM", {**GROUPED, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("Llama", "ForCausalLM", {**GROUPED, "head_dim": 10}),
    ("Llama", "ForSequenceClassification", {**GROUPED, "num_labels": 5}),
    ("Llama", "ForTokenClassification", {**GROUPED, "num_labels": 5}),
    ("Llama", "Model", GROUPED),
    ("Mistral", "ForCausalLM", {**GROUPED, "head_dim": 10}),
    ("Qwen2", "ForCausalLM", GROUPED),
    ("Qwen2", "ForCausalLM", {**GROUPED, "tie_word_embeddings": True}),
    ("Qwen3", "ForCausalLM", {**GROUPED, "head_dim": 10}),
    ("Qwen3", "ForSequenceClassification", {**GROUPED, "attention_bias": True}),
    ("Gemma", "ForCausalLM", GROUPED),
    ("Gemma2", "ForCausalLM", {**GROUPED, "head_dim": 10}),
    ("Gemma2", "ForCausalLM", {**GROUPED, "tie_word_embeddings": False}),
    ("Gemma3Text", "ForCausalLM", GROUPED),
    ("Phi3", "ForCausalLM", {**GROUPED, **TOKENS}),
    ("Mixtral", "ForCausalLM", {**GROUPED, "num_local_experts": 4}),
    ("Qwen3Moe", "ForCausalLM", MOE),
    ("Qwen3Moe", "ForCausalLM", {**MOE, "decoder_sparse_step": 1, "mlp_only_layers": [1]}),
    ("GPT2", "LMHeadModel", TINY_GPT2),
    ("GPT2", "LMHeadModel", {**TINY_GPT2, "n_inner": 50, "tie_word_embeddings": False}),
    ("GPT2", "ForSequenceClassification", TINY_GPT2),
    ("GPT2", "ForTokenClassification", TINY_GPT2),
    ("GPT2", "Model", TINY_GPT2),
    ("GPTNeo", "ForCausalLM", {**TINY, "num_layers": 2, "attention_types": [[["global", "local"], 1]]}),
    ("GPTJ", "ForCausalLM", {**TINY_GPT2, "rotary_dim": 4}),
    ("GPTNeoX", "ForCausalLM", TINY),
    ("GPTNeoX", "ForCausalLM", {**TINY, "attention_bias": False, "tie_word_embeddings": True}),
    ("OPT", "ForCausalLM", {**TINY, "ffn_dim": 40, "max_position_embeddings": 20}),
    ("OPT", "Model", {**TINY, "ffn_dim": 40, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    ("OPT", "ForSequenceClassification", {**TINY, "ffn_dim": 40, "word_embed_proj_dim": 16, "enable_bias": False}),
    ("OPT", "ForCausalLM", {**TINY, "ffn_dim": 40, "layer_norm_elementwise_affine": False}),
    ("Bloom", "ForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96}),
    ("Bloom", "ForTokenClassification", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96}),
    ("Falcon", "ForCausalLM", TINY),
    ("Falcon", "ForCausalLM", {**TINY, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    ("Falcon", "ForCausalLM", {**TINY, "multi_query": False, "parallel_attn": False, "ffn_hidden_size": 50}),
    ("Phi", "ForCausalLM", {**GROUPED, "qk_layernorm": True}),
    ("Starcoder2", "ForCausalLM", {**GROUPED, **TOKENS}),
    ("Starcoder2", "Model", {**GROUPED, **TOKENS, "use_bias": False}),
    ("Bert", "Model", BERT),
    ("Bert", "ForMaskedLM", BERT),
    ("Bert", "ForMaskedLM", {**BERT, "tie_word_embeddings": False}),
    ("Bert", "ForPreTraining", BERT),
    ("Bert", "ForNextSentencePrediction", BERT),
    ("Bert", "ForSequenceClassification", {**BERT, "num_labels": 7}),
    ("Bert", "ForTokenClassification", BERT),
    ("Bert", "ForQuestionAnswering", BERT),
    ("Bert", "ForMultipleChoice", BERT),
    ("Roberta", "Model", BERT),
    ("Roberta", "ForMaskedLM", BERT),
    ("Roberta", "ForSequenceClassification", BERT),
    ("Roberta", "ForMultipleChoice", BERT),
    ("XLMRoberta", "ForTokenClassification", BERT),
    ("Electra", "ForSequenceClassification", {**BERT, "embedding_size": 16}),
    ("Electra", "ForPreTraining", {**BERT, "embedding_size": 32}),
    ("Electra", "ForQuestionAnswering", {**BERT, "embedding_size": 16}),
    ("DebertaV2", "ForSequenceClassification", DEBERTA),
    ("DebertaV2", "ForTokenClassification", {**DEBERTA, **RELATIVE, "share_att_key": True, "position_buckets": 8}),
    ("DebertaV2", "Model", {**DEBERTA, **RELATIVE, "max_relative_positions": 9, "conv_kernel_size": 3}),
    ("DebertaV2", "ForMaskedLM", {**DEBERTA, **RELATIVE, "type_vocab_size": 2}),
    ("ModernBert", "ForMaskedLM", {**TINY, **TOKENS}),
    ("ModernBert", "ForSequenceClassification", {**TINY, **TOKENS, "norm_bias": True, "attention_bias": True}),
    ("ModernBert", "Model", {**TINY, **TOKENS, "mlp_bias": True}),
    ("DistilBert", "ForSequenceClassification", {}),
    ("DistilBert", "ForMaskedLM", {"dim": 32, "hidden_dim": 40, "n_layers": 2, "n_heads": 4, "vocab_size": 96}),
    ("DistilBert", "ForQuestionAnswering", {"dim": 32, "hidden_dim": 40, "n_layers": 2, "n_heads": 4}),
    ("DistilBert", "ForMultipleChoice", {"dim": 32, "hidden_dim": 40, "n_layers": 2, "n_heads": 4}),
    ("DistilBert", "Model", {"dim": 32, "hidden_dim": 40, "n_layers": 2, "n_heads": 4}),
    ("T5", "ForConditionalGeneration", TINY_T5),
    ("T5", "Model", {**TINY_T5, "feed_forward_proj": "gated-gelu"}),
    ("T5", "EncoderModel", TINY_T5),
    ("T5", "ForSequenceClassification", TINY_T5),
    ("T5", "ForTokenClassification", TINY_T5),
    ("T5", "ForQuestionAnswering", TINY_T5),
    ("MT5", "ForConditionalGeneration", {**TINY_T5, "feed_forward_proj": "gated-gelu"}),
    ("Bart", "ForConditionalGeneration", {**SIDES, **TOKENS, "max_position_embeddings": 20}),
    ("Bart", "ForSequenceClassification", {**SIDES, **TOKENS, "max_position_embeddings": 20}),
    ("Whisper", "ForConditionalGeneration", WHISPER),
    ("Whisper", "Model", WHISPER),
    ("ViT", "ForImageClassification", {**TINY, "image_size": 32, "patch_size": 8, "num_labels": 10}),
    ("ViT", "Model", {**TINY, "image_size": [32, 48], "patch_size": 8, "qkv_bias": False}),
]


def built(family: str, head: str, settings: dict[str, Any]) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The model without memory, and its configuration as it would be read from a file."""
    config = getattr(transformers, f"{family}Config")(**settings)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, f"{CLASSES.get(family, family)}{head}")(config)
    document = json.loads(config.to_json_string(use_diff=False))
    return model, {**document, "architectures": [type(model).__name__]}


def kinds_of(model: torch.nn.Module) -> dict[str, WeightKind]:
    """What each weight is, by the class that holds it."""
    found = {}
    for path, module in model.named_modules():
        for classes, kind in (
            ((transformers.pytorch_utils.Conv1D,), WeightKind.CONV1D),
            ((torch.nn.Linear,), WeightKind.LINEAR),
            ((torch.nn.Embedding,), WeightKind.EMBEDDING),
            ((torch.nn.Conv1d, torch.nn.Conv2d), WeightKind.CONV),
        ):
            if isinstance(module, classes):
                found[f"{path}.weight"] = kind
    return found


@pytest.mark.parametrize(("family", "head", "settings"), CASES)
def test_weights_are_those_of_the_model(family: str, head: str, settings: dict[str, Any]) -> None:
    """Every name, shape and kind, which ones share memory, and the number of elements."""
    model, document = built(family, head, settings)
    architecture = architecture_of(document)
    weights = {weight.name: weight for weight in architecture.weights}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: tuple(parameter.shape) for name, parameter in parameters.items()
    }
    assert len(weights) == len(architecture.weights)
    kinds = kinds_of(model)
    for name, weight in weights.items():
        if weight.kind is not WeightKind.EXPERTS and not name.endswith(
            ".mlp.gate.weight"
        ):  # a router is a linear layer
            assert weight.kind is kinds.get(name, WeightKind.OTHER), name
    assert architecture.is_head_known
    assert architecture.parameters == sum(parameter.numel() for parameter in model.parameters())
    firsts = {name for name, _ in model.named_parameters()}
    groups: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(id(parameter), []).append(name)
    for names in groups.values():
        assert sum(not weights[name].is_tied for name in names) == 1, names
    assert len(firsts) == len(groups)


@pytest.mark.parametrize(("family", "head", "settings"), CASES)
def test_the_output_layer_is_the_model_s_own(family: str, head: str, settings: dict[str, Any]) -> None:
    """What PEFT's all-linear leaves out: the output embedding, otherwise a classifier."""
    model, document = built(family, head, settings)
    output = model.get_output_embeddings()
    expected = {name for name, module in model.named_modules() if output is not None and module is output}
    if output is None:
        expected = {
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and name.partition(".")[0] in ("score", "classifier")
        }
    assert {weight.module for weight in architecture_of(document).weights if weight.is_output} == expected


def test_every_family_is_tested() -> None:
    tested = {getattr(transformers, f"{family}Config").model_type for family, _, _ in CASES}
    assert tested == set(known_families())


@pytest.mark.parametrize(
    ("family", "parameters"),
    [("gpt2", 124_439_808), ("distilbert", 66_362_880)],
)
def test_defaults_are_those_of_the_published_models(family: str, parameters: int) -> None:
    assert architecture_of({"model_type": family, "architectures": ["Model"]}).parameters == parameters


def test_a_head_that_is_not_known_is_said() -> None:
    found = architecture_of({**GROUPED, "model_type": "llama", "architectures": ["LlamaForRocketScience"]})
    assert (found.head, found.is_head_known) == ("RocketScience", False)
    plain = architecture_of({**GROUPED, "model_type": "llama", "architectures": ["LlamaModel"]})
    assert found.parameters == plain.parameters


@pytest.mark.parametrize("classes", [None, [], "LlamaForCausalLM", [7]])
def test_without_a_class_a_decoder_writes_text(classes: object) -> None:
    found = architecture_of({**GROUPED, "model_type": "llama", "architectures": classes})
    assert found.head == "CausalLM"


def test_an_untied_output_of_t5_is_counted() -> None:
    """Files of T5 1.1 say tie_word_embeddings false and hold lm_head as a matrix of its own."""
    tied = architecture_of({**TINY_T5, "model_type": "t5", "architectures": ["T5ForConditionalGeneration"]})
    untied = architecture_of(
        {
            **TINY_T5,
            "model_type": "t5",
            "architectures": ["T5ForConditionalGeneration"],
            "tie_word_embeddings": False,
        }
    )
    assert untied.parameters - tied.parameters == 32 * 96


@pytest.mark.parametrize("family", [None, 7, "", "rocket", ["llama"]])
def test_an_unknown_family_names_the_known_ones(family: object) -> None:
    with pytest.raises(
        CompatibilityError, match=r"has the model_type .*, expected one of: bart, bert, .*llama"
    ) as told:
        architecture_of({"model_type": family}, name="mine")
    assert "'mine'" in told.value.message
    assert "--matrix" in told.value.hint


@pytest.mark.parametrize("value", [None, -1, 0, 1.5, "32", True, 1 << 60])
def test_a_setting_that_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(CompatibilityError, match=r"The setting 'hidden_size' of the configuration"):
        architecture_of({**GROUPED, "model_type": "llama", "hidden_size": value})


def test_a_file_does_not_decide_how_much_memory_is_taken() -> None:
    with pytest.raises(CompatibilityError, match="'num_hidden_layers'"):
        architecture_of({**GROUPED, "model_type": "llama", "num_hidden_layers": 10**9})


def test_a_model_without_layers_has_its_embeddings() -> None:
    found = architecture_of({**GROUPED, "model_type": "llama", "num_hidden_layers": 0})
    assert found.parameters == 2 * 96 * 32 + 32


@pytest.mark.parametrize(
    ("weight", "sides", "matrices"),
    [
        (Weight("a.weight", (3, 5), WeightKind.LINEAR), (3, 5), 1),
        (Weight("a.weight", (3, 5), WeightKind.CONV1D), (5, 3), 1),
        (Weight("a.weight", (3, 5), WeightKind.EMBEDDING), (5, 3), 1),
        (Weight("a.weight", (3, 5, 2, 2), WeightKind.CONV), (3, 20), 1),
        (Weight("a", (4, 3, 5), WeightKind.EXPERTS), (3, 5), 4),
    ],
)
def test_sides(weight: Weight, sides: tuple[int, int], matrices: int) -> None:
    assert (weight.sides, weight.matrices) == (sides, matrices)
    assert weight.module == "a"


def test_no_weight_is_no_parameter() -> None:
    assert Architecture("none", "Model", ()).parameters == 0
