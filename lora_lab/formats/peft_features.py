"""Everything in a PEFT adapter beyond A, B and alpha/rank: honoured, outside ΔW, or refused, always by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.adapter import DeltaKind, Effect, Feature
from lora_lab.errors import quoted
from lora_lab.formats import peft_keys as names
from lora_lab.formats.peft_keys import some

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_lab.domain.adapter import Delta, SavedTensor
    from lora_lab.formats.peft_config import PeftConfig
    from lora_lab.formats.peft_keys import Keys

# Starts that leave the base as it is; every other one subtracts from it what the factors began with.
_PLAIN_STARTS: Final = ("gaussian", "eva", "orthogonal", "mica", "true", "false")
_CHANGED_BASES: Final = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "lora_ga": "LoRA-GA",
    "loftq": "LoftQ",
}
_SAVED_TITLES: Final = {
    "bias": "Trained biases",
    "modules_to_save": "Saved modules",
    "trainable_tokens": "Trainable tokens",
    "embedding_layer": "Saved embedding layers",
}
_SAVED_DETAILS: Final = {
    "bias": "they replace biases of the base",
    "modules_to_save": "they replace weights of the base",
    "trainable_tokens": "they replace single rows of an embedding",
    "embedding_layer": "they replace embedding layers of the base",
}
_SAMPLER: Final = "monteclora_sampler"


def features(
    config: PeftConfig, keys: Keys, deltas: tuple[Delta, ...], saved: tuple[SavedTensor, ...]
) -> tuple[Feature, ...]:
    """List the features of an adapter, in a fixed order."""
    found = [
        *_scalings(config),
        *_kinds(config, deltas),
        *_extra_factors(config, keys),
        *_saved(saved),
        *initialisation(config),
        *variants(config, keys),
    ]
    return tuple(found)


def is_loose(config: PeftConfig) -> bool:
    """Whether the factors' shapes are those of a variant that keeps them packed, so that no ΔW follows from them."""
    return any(config.is_on(key) for key in ("use_qalora", "use_bdlora", "enable_lora"))


def initialisation(config: PeftConfig) -> Iterator[Feature]:
    """The feature of a start that changed the base, if there was one."""
    value: Any = config.document.get("init_lora_weights", True)
    if value is None or isinstance(value, bool) or (isinstance(value, str) and value.lower() in _PLAIN_STARTS):
        return
    text = value.lower() if isinstance(value, str) else ""
    for start, title in _CHANGED_BASES.items():
        if text == start or text.startswith(f"{start}_niter_"):
            yield Feature(
                start,
                f"{title} initialisation",
                Effect.REFUSED,
                "The base was changed when training began and the factors count from there; convert the adapter with "
                "path_initial_model_for_weight_conversion when it is saved.",
            )
            return
    yield Feature(
        "initialisation",
        "Unknown initialisation",
        Effect.REFUSED,
        f"init_lora_weights is {quoted(value)}, which may have changed the base.",
    )


def variants(config: PeftConfig, keys: Keys) -> Iterator[Feature]:
    """Variants of LoRA that the configuration switches on, and tensors of variants that nobody here knows."""
    for key, feature in _VARIANTS.items():
        if config.is_on(key):
            yield feature
    strangers = [ref.name for ref in keys.unknown if _SAMPLER not in ref.name or not config.is_on("monteclora_config")]
    if strangers:
        yield Feature(
            "unknown_tensors",
            "Unknown LoRA tensors",
            Effect.REFUSED,
            f"What {some(map(quoted, strangers), limit=3)} do to the weights is not known here.",
            len(strangers),
        )


def _scalings(config: PeftConfig) -> Iterator[Feature]:
    if config.is_rslora:
        yield Feature("rslora", "rsLoRA", Effect.HONOURED, "The scaling is alpha/√rank.")
    for key, pattern in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        if pattern:
            yield Feature(key, key.capitalize().replace("_", " "), Effect.HONOURED, _listed(pattern))


def _kinds(config: PeftConfig, deltas: tuple[Delta, ...]) -> Iterator[Feature]:
    transposed = sum(delta.fan_in_fan_out for delta in deltas)
    if transposed:
        yield Feature("fan_in_fan_out", "Transposed weights", Effect.HONOURED, "The base stores (in, out).", transposed)
    kinds = [delta.kind for delta in deltas]
    if DeltaKind.EMBEDDING in kinds:
        count = kinds.count(DeltaKind.EMBEDDING)
        yield Feature("embeddings", "Embeddings", Effect.HONOURED, "ΔW is stored as (vocabulary, dim).", count)
    if DeltaKind.CONV in kinds:
        count = kinds.count(DeltaKind.CONV)
        yield Feature("convolutions", "Convolutions", Effect.HONOURED, "ΔW is flattened to (out, in·kernel).", count)
    grouped = sum(delta.groups > 1 for delta in deltas)
    if grouped:
        yield Feature(
            "grouped_convolutions",
            "Grouped convolutions",
            Effect.OUTSIDE,
            "Every output sees every input, which the base's grouped kernel cannot hold: such a ΔW cannot be merged.",
            grouped,
        )
    if config.target_parameters:
        experts = kinds.count(DeltaKind.EXPERTS)
        detail = f"Of {some(map(quoted, config.target_parameters), limit=3)}, one ΔW for each expert."
        yield Feature("target_parameters", "Targeted parameters", Effect.HONOURED, detail, experts)


def _extra_factors(config: PeftConfig, keys: Keys) -> Iterator[Feature]:
    if config.is_dora:
        detail = "Magnitudes change the whole weight, W′ = m·(W + ΔW)/‖W + ΔW‖; that needs the base."
        yield Feature("dora", "DoRA", Effect.OUTSIDE, detail, len(keys.of(names.MAGNITUDE)))
    if keys.of(names.BIAS):
        detail = "Biases of lora_B, times the scaling, are added to the base's biases."
        yield Feature("lora_bias", "Biases of lora_B", Effect.OUTSIDE, detail, len(keys.of(names.BIAS)))
    if keys.of(names.DIAGONAL):
        detail = "The diagonal is part of ΔW; beside it the base loses its smallest singular values when it is loaded."
        yield Feature("kasa", "KaSA", Effect.OUTSIDE, detail, len(keys.of(names.DIAGONAL)))


def _saved(saved: tuple[SavedTensor, ...]) -> Iterator[Feature]:
    for role, title in _SAVED_TITLES.items():
        tensors = [one for one in saved if one.role.value == role]
        if tensors:
            modules = dict.fromkeys(one.module for one in tensors)
            detail = f"{len(tensors)} tensors of {some(map(quoted, modules), limit=3)}: {_SAVED_DETAILS[role]}."
            yield Feature(role, title, Effect.OUTSIDE, detail, len(modules))


def _listed(pattern: Mapping[str, Any]) -> str:
    return some((f"{quoted(key)}: {value:g}" for key, value in pattern.items()), limit=3) + "."


_VARIANTS: Final = {
    "use_qalora": Feature(
        "qalora", "QALoRA", Effect.REFUSED, "Inputs are pooled in groups before lora_A; there is no ΔW of the base."
    ),
    "use_bdlora": Feature(
        "bdlora", "BD-LoRA", Effect.REFUSED, "One factor of each pair is block diagonal and stored packed."
    ),
    "enable_lora": Feature(
        "merged_linear",
        "MergedLinear",
        Effect.REFUSED,
        "Early PEFT packed several projections into one pair of factors (enable_lora).",
    ),
    "arrow_config": Feature(
        "arrow",
        "Arrow",
        Effect.REFUSED,
        "Which adapters act is decided for each token, from adapters that are not here.",
    ),
    "alora_invocation_tokens": Feature(
        "alora", "Activated LoRA", Effect.OUTSIDE, "ΔW acts only after the invocation tokens; it cannot be merged."
    ),
    "velora_config": Feature(
        "velora", "VeLoRA", Effect.HONOURED, "It changed how gradients were computed; ΔW is that of plain LoRA."
    ),
    "monteclora_config": Feature(
        "monteclora", "MonteCLoRA", Effect.OUTSIDE, "lora_A was sampled around its mean in training; ΔW is of the mean."
    ),
    "layer_replication": Feature(
        "layer_replication", "Replicated layers", Effect.OUTSIDE, "Layer numbers are those of the lengthened model."
    ),
    "ensure_weight_tying": Feature(
        "weight_tying", "Tied weights", Effect.OUTSIDE, "Layers tied in the base share what is trained here."
    ),
}
