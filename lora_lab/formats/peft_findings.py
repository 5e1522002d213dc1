"""What a person should know about a PEFT adapter that no error and no feature says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.domain.dtypes import DType
from lora_lab.domain.modules import layer_of
from lora_lab.domain.report import Finding
from lora_lab.errors import quoted
from lora_lab.formats.peft_keys import NESTED, some

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.domain.adapter import Delta
    from lora_lab.formats.peft_config import Patterns, PeftConfig

_ALL_LINEAR: Final = "all-linear"
_FP8: Final = frozenset((DType.F8_E4M3, DType.F8_E5M2, DType.F8_E4M3FNUZ, DType.F8_E5M2FNUZ))


def findings_of(config: PeftConfig, deltas: tuple[Delta, ...], patterns: Patterns) -> Iterator[Finding]:
    """Yield what is odd about alphas, element types and targets."""
    yield from _alphas(config, deltas)
    yield from _dtypes(deltas)
    yield from _targets(config, deltas, patterns)
    yield from _layers(config, deltas)


def _alphas(config: PeftConfig, deltas: tuple[Delta, ...]) -> Iterator[Finding]:
    if config.alpha > 0 and not config.alpha_pattern:
        return
    zero = sum(delta.alpha == 0 for delta in deltas)
    negative = sum(delta.alpha < 0 for delta in deltas)
    if zero:
        yield Finding("zero_alpha", f"Alpha is 0 for {_modules(zero)}: ΔW is zero, a merge would change nothing.")
    if negative:
        yield Finding(
            "negative_alpha", f"Alpha is negative for {_modules(negative)}: a merge subtracts what was trained."
        )


def _dtypes(deltas: tuple[Delta, ...]) -> Iterator[Finding]:
    dtypes = {delta.lora_A.dtype for delta in deltas} | {delta.lora_B.dtype for delta in deltas}
    if len(dtypes) > 1:
        listed = ", ".join(sorted(dtypes))
        yield Finding(
            "mixed_dtypes", f"The factors are stored in different types ({listed}); they are computed in float64."
        )
    if not dtypes.isdisjoint(_FP8):
        yield Finding(
            "fp8_factors", "Factors are stored in 8 bits without a scale of their own; they are taken as they are."
        )


def _targets(config: PeftConfig, deltas: tuple[Delta, ...], patterns: Patterns) -> Iterator[Finding]:
    """Targets without tensors, and tensors without a target, which PEFT would not load."""
    targets = config.target_modules
    if not targets or targets == _ALL_LINEAR or config.target_parameters:
        return
    # An attention's out_proj is nested in the tensors' names: the attention is its target.
    modules = [delta.module for delta in deltas if NESTED not in delta.lora_A.name]
    lasts = {module.rpartition(".")[2] for module in modules}
    if isinstance(targets, str) or config.exclude_modules or not lasts.issubset(targets):
        stray = [module for module in modules if not patterns.is_target(module)]
        if stray:
            yield Finding(
                "untargeted_modules",
                f"{_modules(len(stray))} of the file is no target of the configuration, so PEFT would not load it: "
                f"{some(map(quoted, stray), limit=3)}."
                if len(stray) == 1
                else f"{_modules(len(stray))} of the file are no targets of the configuration, so PEFT would not load "
                f"them: {some(map(quoted, stray), limit=3)}.",
            )
    if isinstance(targets, tuple):
        unmatched = [name for name in targets if name not in lasts and not _ends_one(name, modules)]
        if unmatched:
            yield Finding(
                "unmatched_targets",
                f"The configuration targets {some(map(quoted, sorted(unmatched)), limit=5)}, to which no tensor of the "
                "file belongs.",
            )


def _ends_one(name: str, modules: list[str]) -> bool:
    tail = f".{name}"
    return any(module == name or module.endswith(tail) for module in modules)


def _modules(count: int) -> str:
    return "1 module" if count == 1 else f"{count} modules"


def _layers(config: PeftConfig, deltas: tuple[Delta, ...]) -> Iterator[Finding]:
    if not config.layers_to_transform:
        return
    present = {layer_of(delta.module) for delta in deltas}
    absent = [str(layer) for layer in sorted(set(config.layers_to_transform)) if layer not in present]
    if absent:
        yield Finding("missing_layers", f"The configuration names layers without tensors: {some(absent)}.")
