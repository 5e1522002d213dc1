"""What is asked of an adapter: which modules, which rank, which scaling; and the same as PEFT's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.patterns import is_target, pattern_value
from lora_lab.errors import AdapterError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

_READ: Final = frozenset(
    {
        "r",
        "lora_alpha",
        "target_modules",
        "exclude_modules",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "base_model_name_or_path",
        "task_type",
        "init_lora_weights",
        "bias",
        "peft_type",
    }
)
# None of these changes what a trained adapter does to the model.
_HARMLESS: Final = frozenset(
    {
        "auto_mapping",
        "peft_version",
        "revision",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "eva_config",
        "corda_config",
        "loftq_config",
        "lora_ga_config",
        "qalora_group_size",
        "layers_pattern",
        "ensure_weight_tying",
        "runtime_config",
    }
)
# Every other initialisation changes the base weights, so that the factors alone do not say what was learned.
_PLAIN_STARTS: Final = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LoraConfig:
    """One adapter's configuration; names and meaning are PEFT's.

    Parameters
    ----------
    target_modules : a list of name ends, or one regular expression over whole module names
    rank : columns of B and rows of A, where no key of `rank_pattern` matches
    alpha : numerator of the scaling, where no key of `alpha_pattern` matches
    use_rslora : scaling is ``alpha / sqrt(rank)``; else ``alpha / rank``
    use_dora : a trained magnitude for each output row
    rank_pattern, alpha_pattern : regular expression over the end of a module name to value; the first match wins
    exclude_modules : as `target_modules`, and stronger
    base_model_name_or_path : what the adapter was trained on, for whoever loads it
    task_type : PEFT's name for the kind of model, such as ``CAUSAL_LM``

    Raises
    ------
    AdapterError
        a rank below 1, an alpha that is not finite, or a target that is missing or means what only PEFT can expand.

    Notes
    -----
    rsLoRA: Kalajdzievski 2023 (arXiv 2312.03732). DoRA: Liu et al. 2024 (arXiv 2402.09353).

    Examples
    --------
    >>> config = LoraConfig(["q_proj"], rank=3, alpha=6, rank_pattern={"layers.0.q_proj": 1})
    >>> config.scaling_of("model.layers.1.q_proj"), config.scaling_of("model.layers.0.q_proj")
    (2.0, 6.0)
    """

    target_modules: str | list[str]
    rank: int = 8
    alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    exclude_modules: str | list[str] = field(default_factory=list)
    base_model_name_or_path: str | None = None
    task_type: str | None = None

    def __post_init__(self) -> None:
        if not self.target_modules or self.target_modules == "all-linear":
            raise AdapterError(
                f"The target modules {quoted(self.target_modules)} name nothing.",
                hint="Name the modules, or a pattern.",
            )
        ranks: list[object] = [self.rank, *self.rank_pattern.values()]
        for rank in ranks:
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise AdapterError(f"The rank {quoted(rank)} is not a whole number from 1 up.")
        alphas: list[object] = [self.alpha, *self.alpha_pattern.values()]
        for alpha in alphas:
            if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not isfinite(alpha):
                raise AdapterError(f"The alpha {quoted(alpha)} is not a finite number.")

    def targets(self, module: str) -> bool:
        """Whether `module` gets factors."""
        return is_target(module, self.target_modules, self.exclude_modules)

    def rank_of(self, module: str) -> int:
        """Rank of `module`."""
        return pattern_value(self.rank_pattern, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """Factor of B·A on `module`: ``alpha / rank``, or ``alpha / sqrt(rank)`` for rsLoRA."""
        alpha, rank = pattern_value(self.alpha_pattern, module, self.alpha), self.rank_of(module)
        return alpha / sqrt(rank) if self.use_rslora else alpha / rank

    def to_peft(self) -> dict[str, Any]:
        """The content of ``adapter_config.json``."""
        return {
            "peft_type": "LORA",
            "task_type": self.task_type,
            "base_model_name_or_path": self.base_model_name_or_path,
            "inference_mode": True,
            "target_modules": self.target_modules,
            "exclude_modules": self.exclude_modules or None,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "init_lora_weights": "gaussian",
            "bias": "none",
            "fan_in_fan_out": False,
            "modules_to_save": None,
        }

    @classmethod
    def from_peft(cls, document: Mapping[str, Any]) -> LoraConfig:
        """Read the content of ``adapter_config.json``; whatever this room cannot honour is refused by name.

        Raises
        ------
        AdapterError
            not a LoRA, a feature that changes the adapter's effect and has no place here, or a value of a wrong kind.
        """
        _require_honoured(document)
        try:
            return cls(
                target_modules=document.get("target_modules") or [],
                rank=document.get("r", 8),
                alpha=document.get("lora_alpha", 8),
                use_rslora=bool(document.get("use_rslora")),
                use_dora=bool(document.get("use_dora")),
                rank_pattern=dict(document.get("rank_pattern") or {}),
                alpha_pattern=dict(document.get("alpha_pattern") or {}),
                exclude_modules=document.get("exclude_modules") or [],
                base_model_name_or_path=document.get("base_model_name_or_path"),
                task_type=document.get("task_type"),
            )
        except (TypeError, ValueError) as error:
            raise AdapterError(f"The adapter's configuration holds a value of a wrong kind: {error}.") from error


def _require_honoured(document: Mapping[str, Any]) -> None:
    if document.get("peft_type", "LORA") != "LORA":
        raise AdapterError(f"The configuration is for {quoted(document['peft_type'])}, expected 'LORA'.")
    for key, value in document.items():
        if key == "bias":
            honoured = value == "none"
        elif key == "init_lora_weights":
            honoured = any(value is start or value == start for start in _PLAIN_STARTS)
        else:
            honoured = key in _READ or key in _HARMLESS or not value
        if not honoured:
            raise AdapterError(
                f"The configuration sets {quoted(key)} to {quoted(value)}, which a live adapter does not honour.",
                hint="Load it with PEFT, or convert it to a plain LoRA first.",
            )
