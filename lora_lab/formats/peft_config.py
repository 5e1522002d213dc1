"""``adapter_config.json`` of PEFT, read with types: what is said is checked, what is not understood is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, sqrt
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lora_lab.domain.patterns import is_target, pattern_value
from lora_lab.domain.report import Finding
from lora_lab.errors import AdapterError, UnsupportedFormatError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SUPPORTED_TYPES: Final = ("LORA",)
T = TypeVar("T")

# PEFT's other methods; every one of them has a configuration of its own and no lora_A and lora_B with this meaning.
OTHER_TYPES: Final = frozenset(
    """
    ADALORA ADAMSS ADAPTION_PROMPT BEFT BOFT BONE C3A CARTRIDGE CPT DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA
    IA3 LILY LN_TUNING LOHA LOKR MISS MULTITASK_PROMPT_TUNING OFT OSF PEANUT POLY PREFIX_TUNING PROMPT_TUNING PSOFT
    PVERA P_TUNING RANDLORA ROAD SHADOW SHIRA SUPERTUNING TINYLORA TRAINABLE_TOKENS UNILORA VBLORA VERA WAVEFT XLORA
    """.split()
)
# Keys that are read here or become a feature.
_READ: Final = frozenset(
    """
    alora_invocation_tokens alpha_pattern arrow_config base_model_name_or_path bias enable_lora ensure_weight_tying
    exclude_modules fan_in_fan_out init_lora_weights kasa_config layer_replication layers_to_transform lora_alpha
    lora_bias modules_to_save monteclora_config peft_type r rank_pattern target_modules target_parameters
    trainable_token_indices use_bdlora use_dora use_qalora use_rslora velora_config
    """.split()
)
# Keys that change nothing a trained adapter does: how it was trained, which library wrote it, where its base is.
_HARMLESS: Final = frozenset(
    """
    auto_mapping corda_config eva_config inference_mode layers_pattern loftq_config lora_dropout lora_ga_config
    megatron_config megatron_core merge_weights peft_version qalora_group_size revision runtime_config task_type
    """.split()
)
_CODE_KEYS: Final = ("auto_map", "trust_remote_code")
_LARGEST_FLOAT32: Final = 3.4028234663852886e38
_PATTERN_SECONDS: Final = 1.0
_SHOWN: Final = 5


@dataclass(frozen=True)
class PeftConfig:
    """A checked configuration; names are those of the project, not of the file."""

    document: Mapping[str, Any]
    rank: int
    alpha: float
    is_rslora: bool = False
    is_dora: bool = False
    is_fan_in_fan_out: bool = False
    has_lora_bias: bool = False
    bias: str = "none"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    target_modules: str | tuple[str, ...] = ()
    exclude_modules: str | tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] = ()
    base_model: str | None = None
    findings: tuple[Finding, ...] = ()

    def is_on(self, key: str) -> bool:
        """Whether the file sets `key` to anything but off: null, false and empty are off."""
        return not _is_off(self.document.get(key))

    def scaling(self, rank: int, alpha: float) -> float:
        """Factor of B·A: alpha / rank, or alpha / √rank for rsLoRA."""
        return alpha / sqrt(rank) if self.is_rslora else alpha / rank


class Patterns:
    """The configuration's patterns over many modules, with a time limit for all of them together."""

    def __init__(self, config: PeftConfig) -> None:
        self._config = config
        self._seconds_left = _PATTERN_SECONDS

    def rank_of(self, module: str) -> int:
        """Rank that the configuration gives `module`."""
        return self._value(self._config.rank_pattern, module, self._config.rank)

    def alpha_of(self, module: str) -> float:
        """Alpha that the configuration gives `module`."""
        return self._value(self._config.alpha_pattern, module, self._config.alpha)

    def is_target(self, module: str) -> bool:
        """Whether PEFT would put factors on `module`."""
        config, started = self._config, monotonic()
        found = is_target(module, config.target_modules, config.exclude_modules)
        self._spend(started)
        return found

    def _value(self, patterns: Mapping[str, T], module: str, default: T) -> T:
        if not patterns:
            return default
        started = monotonic()
        value = pattern_value(patterns, module, default)
        self._spend(started)
        return value

    def _spend(self, started: float) -> None:
        self._seconds_left -= monotonic() - started
        if self._seconds_left < 0:
            raise AdapterError(
                f"The patterns of the configuration take longer than {_PATTERN_SECONDS:g} s on the adapter's modules.",
                hint="Write the module names out in adapter_config.json.",
            )


def parse_config(document: Any, path: Path, *, alpha: float | None = None) -> PeftConfig:
    """Check the content of ``adapter_config.json`` field by field.

    Parameters
    ----------
    document : as parsed from JSON
    path : of the file, for sentences
    alpha : what the user says where the file does not say

    Raises
    ------
    UnsupportedFormatError
        another method than LoRA.
    AdapterError
        a field is missing or of the wrong type.
    """
    if not isinstance(document, dict):
        raise AdapterError(f"{quoted(path)} holds {_kind(document)}, expected a JSON object.")
    _require_lora(document, path)
    fields = _Fields(document, path)
    told, findings = _alpha(fields, alpha)
    return PeftConfig(
        document=document,
        rank=fields.rank("r"),
        alpha=told,
        is_rslora=fields.boolean("use_rslora"),
        is_dora=fields.boolean("use_dora"),
        is_fan_in_fan_out=fields.boolean("fan_in_fan_out"),
        has_lora_bias=fields.boolean("lora_bias"),
        bias=fields.choice("bias", ("none", "all", "lora_only")),
        rank_pattern=fields.pattern("rank_pattern", _rank),
        alpha_pattern=fields.pattern("alpha_pattern", _number),
        target_modules=fields.names("target_modules", allow_text=True),
        exclude_modules=fields.names("exclude_modules", allow_text=True),
        target_parameters=fields.texts("target_parameters"),
        modules_to_save=fields.texts("modules_to_save"),
        layers_to_transform=fields.integers("layers_to_transform"),
        base_model=fields.text("base_model_name_or_path"),
        findings=(*findings, *_unknown_keys(document)),
    )


class _Fields:
    """Typed access to the fields of one document; null counts as absent."""

    def __init__(self, document: Mapping[str, Any], path: Path) -> None:
        self._document = document
        self._path = path

    def get(self, key: str) -> Any:
        return self._document.get(key)

    def refusal(self, key: str, value: Any, expected: str) -> AdapterError:
        shown = "missing" if value is None else quoted(value)
        return AdapterError(f"In {quoted(self._path)}, {quoted(key)} is {shown}, expected {expected}.")

    def rank(self, key: str) -> int:
        value = self.get(key)
        if not _rank(value):
            raise self.refusal(key, value, "a whole number from 1 up")
        return int(value)

    def boolean(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refusal(key, value, "true or false")
        return bool(value)

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.get(key)
        if value is None:
            return choices[0]
        if value not in choices:
            raise self.refusal(key, value, f"one of {', '.join(choices)}")
        return str(value)

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.refusal(key, value, "a text")
        return value or None

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.refusal(key, value, "a list of names")
        return tuple(value)

    def names(self, key: str, *, allow_text: bool) -> str | tuple[str, ...]:
        value = self.get(key)
        return value if allow_text and isinstance(value, str) else self.texts(key)

    def integers(self, key: str) -> tuple[int, ...]:
        value = self.get(key)
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in values):
            raise self.refusal(key, value, "layer numbers")
        return tuple(values)

    def pattern(self, key: str, is_good: Any) -> dict[str, Any]:
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.refusal(key, value, "an object from patterns to numbers")
        for name, number in value.items():
            if not is_good(number):
                raise self.refusal(f"{key}.{name}", number, "a rank from 1 up" if is_good is _rank else "a number")
        return value


def _require_lora(document: Mapping[str, Any], path: Path) -> None:
    value = document.get("peft_type")
    supported = ", ".join(SUPPORTED_TYPES)
    if value is None:
        raise AdapterError(
            f"{quoted(path)} does not say its peft_type, expected one of: {supported}.",
            hint="It is not the configuration of a PEFT adapter, or an incomplete one.",
        )
    if not isinstance(value, str):
        raise AdapterError(f"In {quoted(path)}, 'peft_type' is {quoted(value)}, expected one of: {supported}.")
    if value not in SUPPORTED_TYPES:
        known = "" if value in OTHER_TYPES else "unknown "
        raise UnsupportedFormatError(
            f"{quoted(path)} says the {known}peft_type {quoted(value)}: not readable yet, expected: {supported}.",
            hint="`lora-lab plugins` lists the readers that are installed.",
        )


def _alpha(fields: _Fields, given: float | None) -> tuple[float, list[Finding]]:
    value = fields.get("lora_alpha")
    if value is None:
        if given is None:
            error = fields.refusal("lora_alpha", None, "a number")
            raise AdapterError(error.message, hint="Say it with --alpha A if you know it; the scaling depends on it.")
        return given, [Finding("alpha_given", f"The file does not say alpha; {given:g} was given.")]
    if not _number(value):
        raise fields.refusal("lora_alpha", value, "a finite number")
    findings = []
    if given is not None:
        findings.append(Finding("alpha_ignored", f"The file says alpha {value:g}; the one given is not used."))
    return float(value), findings


def _unknown_keys(document: Mapping[str, Any]) -> list[Finding]:
    findings = []
    for key, value in document.items():
        if key in _READ or key in _HARMLESS or _is_off(value):
            continue
        if key in _CODE_KEYS:
            findings.append(
                Finding("code_ignored", f"The configuration's {quoted(key)} names code to import; it never is.")
            )
            continue
        findings.append(
            Finding("unknown_key", f"The configuration's {quoted(key)} ({quoted(value)}) is unknown and not honoured.")
        )
    return findings


def _rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(value: Any) -> bool:
    """Finite also in float32, in which factors are scaled elsewhere."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= _LARGEST_FLOAT32 and isfinite(value)


def _is_off(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, dict | list | str) and not value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
