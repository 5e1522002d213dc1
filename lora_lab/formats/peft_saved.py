"""Tensors of a PEFT file that are no factors: which role each has, and what was announced and is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.domain.adapter import DeltaKind, SavedRole, SavedTensor
from lora_lab.domain.report import Finding
from lora_lab.errors import AdapterError, quoted
from lora_lab.formats import peft_keys as names
from lora_lab.formats.peft_keys import NESTED, some

if TYPE_CHECKING:
    from lora_lab.domain.adapter import Delta
    from lora_lab.formats.peft_config import PeftConfig
    from lora_lab.formats.peft_keys import Keys

_BIASED_KINDS: Final = (DeltaKind.LINEAR, DeltaKind.CONV)
_TOKENS: Final = ".token_adapter."
_ORIGINAL: Final = ".original_module."
_COPY: Final = ".modules_to_save."
# Names under which models keep the layers that PEFT saves along when the vocabulary was changed.
_EMBEDDING_NAMES: Final = frozenset(
    ("embed_tokens", "lm_head", "wte", "wpe", "word_embeddings", "embed_in", "embed_out", "shared", "embeddings")
)
# PEFT announces both for every classifier.
_ANNOUNCED_TOGETHER: Final = frozenset(("classifier", "score"))


def saved_tensors(config: PeftConfig, keys: Keys) -> tuple[tuple[SavedTensor, ...], tuple[Finding, ...]]:
    """Give every tensor that is no factor its role; one that nothing announces is told.

    Raises
    ------
    AdapterError
        biases, saved modules or trainable tokens are announced and not in the file.
    """
    saved: list[SavedTensor] = []
    originals: list[str] = []
    strangers: list[str] = []
    announced: set[str] = set()
    for name, ref in keys.others.items():
        if _ORIGINAL in f".{name}":
            originals.append(ref.name)
            continue
        plain = _without_copy(name)
        wanted = next((module for module in config.modules_to_save if f"{module}." in plain), None)
        module, _, leaf = plain.replace(NESTED, "").rpartition(".")
        if _TOKENS in name:
            module, role = name.partition(_TOKENS)[0], SavedRole.TRAINABLE_TOKENS
        elif wanted is not None:
            announced.add(wanted)
            role = SavedRole.MODULES_TO_SAVE
        elif leaf == "bias":
            role = SavedRole.BIAS
            if config.bias == "none":
                strangers.append(ref.name)
        elif leaf == "weight" and _is_embedding(name, module, keys):
            role = SavedRole.EMBEDDING_LAYER
        else:
            role = SavedRole.MODULES_TO_SAVE
            strangers.append(ref.name)
        saved.append(SavedTensor(module, role, ref))
    _require_announced(config, saved, announced)
    return tuple(saved), tuple(_told(originals, strangers))


def require_extras(config: PeftConfig, keys: Keys, deltas: tuple[Delta, ...]) -> tuple[Finding, ...]:
    """Hold magnitudes, biases of lora_B and diagonals against what the configuration says of them.

    Raises
    ------
    AdapterError
        one is announced and missing for some module, is there and not announced where it changes ΔW, or belongs to a
        module without factors.
    """
    _require_pairs_below(keys)
    if config.is_dora:
        _require_everywhere("use_dora", "magnitude", [delta.module for delta in deltas if delta.magnitude is None])
    elif keys.of(names.MAGNITUDE):
        raise AdapterError(
            f"The file has DoRA magnitudes for {len(keys.of(names.MAGNITUDE))} modules, and the configuration's "
            "use_dora is not true.",
            hint="Set use_dora in adapter_config.json to what was trained.",
        )
    if config.is_on("kasa_config"):
        lacking = [delta.module for delta in deltas if delta.diagonal is None and delta.kind is DeltaKind.LINEAR]
        _require_everywhere("kasa_config", "diagonal", lacking)
    elif keys.of(names.DIAGONAL):
        raise AdapterError(
            f"The file has KaSA diagonals for {len(keys.of(names.DIAGONAL))} modules, and the configuration has no "
            "kasa_config."
        )
    if config.has_lora_bias:
        lacking = [delta.module for delta in deltas if delta.lora_bias is None and delta.kind in _BIASED_KINDS]
        _require_everywhere("lora_bias", "bias", lacking)
    elif keys.of(names.BIAS):
        return (
            Finding(
                "unannounced_lora_bias",
                f"lora_B has biases in {len(keys.of(names.BIAS))} modules, and the configuration's lora_bias is not "
                "true; PEFT would not load them.",
            ),
        )
    return ()


def _require_pairs_below(keys: Keys) -> None:
    pairs = keys.of(names.A).keys() | keys.of(names.EMBEDDING_A).keys()
    for part in (names.MAGNITUDE, names.DIAGONAL, names.BIAS):
        for module, ref in keys.of(part).items():
            if module not in pairs:
                raise AdapterError(
                    f"The tensor {quoted(ref.name)} belongs to the module {quoted(module)}, which has no factors."
                )


def _require_everywhere(key: str, what: str, lacking: list[str]) -> None:
    if lacking:
        count = "1 module has" if len(lacking) == 1 else f"{len(lacking)} modules have"
        raise AdapterError(
            f"The configuration says {key}, but {count} no {what} in the file: {some(map(quoted, lacking), limit=5)}.",
            hint="The file is incomplete; fetch or save it again.",
        )


def _require_announced(config: PeftConfig, saved: list[SavedTensor], announced: set[str]) -> None:
    roles = {one.role for one in saved}
    # Of the heads that PEFT announces together a model has one.
    is_headed = not announced.isdisjoint(_ANNOUNCED_TOGETHER)
    absent = [
        module
        for module in config.modules_to_save
        if module not in announced and not (is_headed and module in _ANNOUNCED_TOGETHER)
    ]
    if absent:
        raise AdapterError(
            f"The configuration says modules_to_save {some(map(quoted, absent), limit=5)}, which the file lacks.",
            hint="The file is incomplete; fetch or save it again.",
        )
    if config.bias != "none" and SavedRole.BIAS not in roles:
        raise AdapterError(
            f"The configuration says bias {quoted(config.bias)}, but the file holds no trained bias.",
            hint='If the base has no biases, set "bias" to "none" in adapter_config.json.',
        )
    if config.is_on("trainable_token_indices") and SavedRole.TRAINABLE_TOKENS not in roles:
        raise AdapterError(
            "The configuration says trainable_token_indices, but the file holds no trained tokens.",
            hint="The file is incomplete; fetch or save it again.",
        )


def _told(originals: list[str], strangers: list[str]) -> list[Finding]:
    findings = []
    if originals:
        findings.append(
            Finding(
                "original_modules",
                f"{len(originals)} tensors are the base's own, kept beside a saved module, and not used: "
                f"{some(map(quoted, originals), limit=3)}.",
            )
        )
    if strangers:
        findings.append(
            Finding(
                "unannounced_tensors",
                f"{len(strangers)} tensors are no factors and nothing in the configuration announces them: "
                f"{some(map(quoted, strangers), limit=3)}.",
            )
        )
    return findings


def _without_copy(name: str) -> str:
    """`name` without ``modules_to_save.ADAPTER``, which files of older versions keep."""
    head, mark, tail = name.partition(_COPY)
    return f"{head}.{tail.partition('.')[2]}" if mark else name


def _is_embedding(name: str, module: str, keys: Keys) -> bool:
    return module.rpartition(".")[2] in _EMBEDDING_NAMES or module in keys.of(names.EMBEDDING_A) or f"{NESTED}." in name
