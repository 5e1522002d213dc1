"""Factors of parameters, which PEFT packs and nests: one matrix for each expert, one level for each parameter.

Of E experts of rank r, lora_A is (E·r, in) with the experts above each other, and lora_B (out, r·E) with those of one
rank side by side. Of several parameters of one module the first that the module registers is innermost, at
``X.base_layer.….lora_A``, the last is at ``X.lora_A``. Source: PEFT 0.21, ``tuners/lora/layer.py:ParamWrapper``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from lora_lab.analyses.summaries import summarised
from lora_lab.errors import AdapterError, quoted
from lora_lab.formats.peft_keys import NESTED, PREFIX
from lora_lab.operations.nesting import level_of, parameter_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.operations.combining import Joined

FUSED: Final = ("gate_up_proj", "down_proj")  # as transformers registers them


def parameters_among(modules: Iterable[Joined], adapters: Sequence[Adapter]) -> dict[str, list[Joined]]:
    """Modules of the result that are of parameters, by the parameter's path."""
    found: dict[str, list[Joined]] = {}
    for module in modules:
        path = parameter_of(module.joint.first, adapters[module.joint.places[0]])
        if path is not None:
            found.setdefault(path, []).append(module)
    return found


def packed(parameters: Mapping[str, Sequence[Joined]], adapters: Sequence[Adapter]) -> dict[str, torch.Tensor]:
    """Tensors of parameters as PEFT reads them, by name; an expert that nobody changes has zeros.

    Parameters
    ----------
    parameters : what :func:`parameters_among` found, the experts of each of one rank

    Raises
    ------
    AdapterError
        no adapter says in which order the parameters of a module are nested.
    """
    tensors = {}
    for path, level in _levels(parameters, adapters).items():
        experts = parameters[path]
        first = experts[0]
        several = {one.joint.first.expert or 0: (one.lora_A, one.lora_B) for one in experts}
        lora_A, lora_B = packed_experts(several, first.joint.first.experts or 1)
        tensors[f"{PREFIX}{level}.lora_A.weight"], tensors[f"{PREFIX}{level}.lora_B.weight"] = lora_A, lora_B
    return tensors


def packed_experts(
    factors: Mapping[int, tuple[torch.Tensor, torch.Tensor]], count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """lora_A (count·r, in) and lora_B (out, r·count) of all experts, r the largest of their ranks.

    Parameters
    ----------
    factors : lora_A (rᵢ, in) and lora_B (out, rᵢ) by expert; one that is not there has zeros

    Examples
    --------
    >>> one = torch.ones(1, 3), torch.ones(2, 1)
    >>> [tuple(factor.shape) for factor in packed_experts({1: one}, 4)]
    [(4, 3), (2, 4)]
    """
    rank = max(lora_A.shape[0] for lora_A, _ in factors.values())
    first_A, first_B = next(iter(factors.values()))
    whole_A = first_A.new_zeros((count, rank, first_A.shape[1]))
    whole_B = first_B.new_zeros((first_B.shape[0], rank, count))
    for expert, (lora_A, lora_B) in factors.items():
        whole_A[expert, : lora_A.shape[0]] = lora_A
        whole_B[:, : lora_A.shape[0], expert] = lora_B
    return whole_A.reshape(-1, first_A.shape[1]), whole_B.reshape(first_B.shape[0], -1)


def nested(root: str, leaves: Sequence[str]) -> dict[str, str]:
    """Where the parameters of one module stand, the first of them registered first and innermost.

    Examples
    --------
    >>> nested("mlp.experts", ["gate_up_proj", "down_proj"])
    {'mlp.experts.gate_up_proj': 'mlp.experts.base_layer', 'mlp.experts.down_proj': 'mlp.experts'}
    """
    return {f"{root}.{leaf}": root + NESTED * (len(leaves) - 1 - depth) for depth, leaf in enumerate(leaves)}


def target_parameters(
    parameters: Mapping[str, Sequence[Joined]], adapters: Sequence[Adapter], *, is_whole: bool
) -> list[str]:
    """What the configuration calls them: as the adapters do, where together these are all of them; else by their paths.

    Raises
    ------
    AdapterError
        their names are not known, and the adapters do not agree in what they target.
    """
    if not parameters:
        return []
    named = [sorted(adapter.configuration.get("target_parameters") or ()) for adapter in adapters]
    nameless = [path for path, experts in parameters.items() if level_of(experts[0].joint.first) == path]
    if nameless and not (is_whole and all(names == named[0] for names in named)):
        raise AdapterError(
            f"The files do not say which parameters the factors of {summarised(map(quoted, nameless))} are of.",
            hint="Combine all modules of adapters that target the same parameters.",
        )
    return sorted({name for names in named for name in names}) if is_whole else list(parameters)


def with_equal_ranks(modules: Sequence[Joined]) -> list[Joined]:
    """The same, the experts of each parameter brought to the largest rank among them by zeros, as they are stored."""
    largest: dict[str, int] = {}
    for module in modules:
        path = module.joint.first.weight_path
        largest[path] = max(module.rank, largest.get(path, 0))
    return [_widened(module, largest[module.joint.first.weight_path]) for module in modules]


def _widened(module: Joined, rank: int) -> Joined:
    missing = rank - module.rank
    if not missing:
        return module
    lora_A = torch.nn.functional.pad(module.lora_A, (0, 0, 0, missing))
    return module._replace(lora_A=lora_A, lora_B=torch.nn.functional.pad(module.lora_B, (0, missing)))


def _levels(parameters: Mapping[str, Sequence[Joined]], adapters: Sequence[Adapter]) -> dict[str, str]:
    """Where each parameter stands, as :func:`level_of` says it."""
    by_root: dict[str, dict[str, dict[int, str]]] = {}
    for path, experts in parameters.items():
        joint = experts[0].joint
        levels = {place: level_of(delta) for place, delta in zip(joint.places, joint.deltas, strict=True)}
        root = next(iter(levels.values()))
        while root.endswith(NESTED):
            root = root.removesuffix(NESTED)
        by_root.setdefault(root, {})[path] = levels
    found: dict[str, str] = {}
    for root, paths in by_root.items():
        order = _order(root, paths, adapters)
        found |= {path: root + NESTED * (len(order) - 1 - depth) for depth, path in enumerate(order)}
    return found


def _order(root: str, paths: Mapping[str, Mapping[int, str]], adapters: Sequence[Adapter]) -> list[str]:
    """Parameters of one module, the innermost first."""
    if len(paths) == 1:
        return list(paths)
    everyone: Any = set.intersection(*(set(levels) for levels in paths.values()))
    if everyone:
        place = min(everyone)
        return sorted(paths, key=lambda path: -len(paths[path][place]))
    leaves = {path.rpartition(".")[2]: path for path in paths}
    if set(leaves) == set(FUSED):
        return [leaves[name] for name in FUSED]
    names = ", ".join(quoted(adapter.name) for adapter in adapters)
    raise AdapterError(
        f"No adapter of {names} has all of the parameters {', '.join(map(quoted, paths))} of {quoted(root)}, so that "
        "nothing says in which order they are nested.",
        hint="Combine adapters that target the same parameters, or some of their modules with --module GLOB.",
    )
