"""Factors of parameters (``target_parameters``): one matrix for each expert, and which parameter a nesting level is.

PEFT wraps a module once for each of its targeted parameters, in the order in which the module registers them: the first
is innermost, its tensors at ``X.base_layer.….lora_A.weight``, the last outermost, at ``X.lora_A.weight``. That order is
the base's and not in the file. One level is one parameter; of two levels called ``gate_up_proj`` and ``down_proj`` the
shapes tell which is which, (hidden, 2·inner) and (inner, hidden) in one orientation or the other. Anything else keeps
the file's own name, and is told.

Deltas are called ``X.parameter[e]`` for expert e of several, ``X.parameter`` for a parameter that is one matrix, and
``X`` where the parameter is ``weight``. Their shape is (out, in) of B·A; whether the base stores an expert's matrix
like that or transposed is for the base's own shapes to say.

Source: PEFT 0.21, ``tuners/lora/layer.py:ParamWrapper`` and ``tuners/tuners_utils.py:_inject_parameters``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.domain.adapter import Delta, DeltaKind
from lora_lab.domain.report import Finding
from lora_lab.errors import AdapterError, quoted
from lora_lab.formats.peft_keys import NESTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lora_lab.domain.tensors import TensorRef
    from lora_lab.formats.peft_config import Patterns, PeftConfig

_FUSED: Final = ("gate_up_proj", "down_proj")
_WEIGHT: Final = "weight"


def parameter_modules(factors_A: Mapping[str, TensorRef], config: PeftConfig, patterns: Patterns) -> dict[str, str]:
    """Modules of the file whose factors belong to parameters, each with the module that holds the parameters."""
    found = {}
    for module in factors_A:
        root = module
        while root.endswith(NESTED):
            root = root.removesuffix(NESTED)
        if parameters_of(root, config, patterns):
            found[module] = root
    return found


def parameters_of(root: str, config: PeftConfig, patterns: Patterns) -> list[str]:
    """Names of the parameters of module `root` that the configuration targets."""
    names = []
    for target in sorted(set(config.target_parameters)):
        owner, _, parameter = target.rpartition(".")
        if owner:
            is_named = root == owner or root.endswith(f".{owner}")
        else:  # a parameter's name alone fits every module that is no target itself
            is_named = not (config.target_modules and patterns.is_target(root))
        if is_named and parameter not in names:
            names.append(parameter)
    return names


def expert_deltas(
    modules: Mapping[str, str],
    factors_A: Mapping[str, TensorRef],
    factors_B: Mapping[str, TensorRef],
    config: PeftConfig,
    patterns: Patterns,
) -> tuple[list[Delta], list[Finding]]:
    """Make one delta for each expert of each parameter.

    Parameters
    ----------
    modules : what :func:`parameter_modules` found
    """
    deltas: list[Delta] = []
    findings: list[Finding] = []
    for root in dict.fromkeys(modules.values()):
        levels = sorted((module for module, owner in modules.items() if owner == root), key=len)
        shapes = [(factors_A[level].shape[-1], factors_B[level].shape[0]) for level in levels]
        parameters = _assigned(parameters_of(root, config, patterns), shapes)
        if parameters is None:
            listed = ", ".join(quoted(name) for name in parameters_of(root, config, patterns))
            findings.append(
                Finding(
                    "unknown_parameter",
                    f"The file does not say which of the parameters {listed} of {quoted(root)} its {len(levels)} pairs "
                    "of factors belong to; they keep the names of the file.",
                    root,
                )
            )
        for place, level in enumerate(levels):
            path = level if parameters is None else f"{root}.{parameters[place]}"
            deltas += _one_parameter(path, factors_A[level], factors_B[level], config, patterns)
    return deltas, findings


def _assigned(parameters: list[str], shapes: list[tuple[int, int]]) -> list[str] | None:
    """Parameters in the order of the levels, outermost first; None where the file does not tell."""
    if len(parameters) != len(shapes):
        return None
    if len(parameters) == 1:
        return parameters
    if set(parameters) != set(_FUSED):
        return None
    fitting = [order for order in (_FUSED[::-1], _FUSED) if _fits(order, shapes)]
    return list(fitting[0]) if len(fitting) == 1 else None


def _fits(order: Iterable[str], shapes: list[tuple[int, int]]) -> bool:
    """Whether the shapes are {hidden, 2·inner} for gate_up_proj and {inner, hidden} for down_proj."""
    sides = dict(zip(order, shapes, strict=True))
    up, down = sides["gate_up_proj"], sides["down_proj"]
    return any(up[i] == down[j] and up[1 - i] == 2 * down[1 - j] for i in (0, 1) for j in (0, 1))


def _one_parameter(
    path: str, lora_A: TensorRef, lora_B: TensorRef, config: PeftConfig, patterns: Patterns
) -> list[Delta]:
    rank, alpha = patterns.rank_of(path), patterns.alpha_of(path)
    rows = lora_A.shape[0]
    if len(lora_A.shape) != 2 or len(lora_B.shape) != 2 or lora_B.shape[1] != rows or rows % rank:
        raise AdapterError(
            f"The parameter {quoted(path)} has lora_A of shape {list(lora_A.shape)} and lora_B of shape "
            f"{list(lora_B.shape)}, expected (experts × {rank}, in) and (out, {rank} × experts)."
        )
    experts = rows // rank
    shape = (lora_B.shape[0], lora_A.shape[1])
    scaling = config.scaling(rank, alpha)
    module = path.removesuffix(f".{_WEIGHT}")
    if experts == 1:
        return [Delta(module, DeltaKind.LINEAR, lora_A, lora_B, rank, alpha, scaling, shape)]
    return [
        Delta(
            f"{module}[{expert}]",
            DeltaKind.EXPERTS,
            lora_A,
            lora_B,
            rank,
            alpha,
            scaling,
            shape,
            experts=experts,
            expert=expert,
        )
        for expert in range(experts)
    ]
