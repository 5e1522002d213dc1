"""Whole modules that adapters bring beside their factors: taken, averaged or left out, as a person says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.summaries import summarised
from lora_lab.domain.adapter import SavedRole
from lora_lab.domain.report import Finding
from lora_lab.errors import CompatibilityError, LoraLabError, quoted
from lora_lab.formats.peft_keys import NESTED, PREFIX
from lora_lab.operations.combine_options import Whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from lora_lab.domain.adapter import Adapter, SavedTensor
    from lora_lab.extension.contracts import Reader
    from lora_lab.operations.combine_options import CombineOptions

_OF_LAYERS: Final = frozenset({SavedRole.BIAS, SavedRole.EMBEDDING_LAYER})
_WRAPPERS: Final = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_ASK: Final = (
    "--saved-modules-from NAME takes one adapter's, --average-saved-modules their mean, --skip-saved-modules none."
)


@dataclass(slots=True)
class Saved:
    """What goes into the file beside factors, and what the configuration says of it.

    tensors : by the name that they have where their module has no factors
    layers : those of them that belong to a layer itself, with the layer's path: where that has factors too, PEFT keeps
        them one level deeper
    replaced : modules that the file brings whole, or rows of
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    configuration: dict[str, Any] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def gather_saved(adapters: Sequence[Adapter], options: CombineOptions, reader: Reader) -> Saved:
    """Read what is taken of the whole modules of all adapters.

    A module that one adapter alone brings is taken as it is; strengths weigh differences, and how far a whole module is
    from the base's is not known here.

    Raises
    ------
    CompatibilityError
        several bring the same and nothing says which is taken, or their shapes differ where they are averaged.
    LoraLabError
        no adapter has the name that was given, or the strengths have no mean.
    """
    result = Saved()
    brought = _brought(adapters)
    winner = _winner(adapters, options.saved_modules_from)
    if not brought:
        return result
    if options.whole is Whole.SKIP:
        shown = summarised(map(quoted, brought))
        result.findings.append(
            Finding("saved_modules_skipped", f"Modules that were saved whole are left out: {shown}.")
        )
        return result
    taken: set[int] = set()
    for module, by_place in brought.items():
        result.modules.append(module)
        if len(by_place) == 1 or winner in by_place:
            place = winner if winner in by_place and winner is not None else next(iter(by_place))
            taken.add(place)
            for saved in by_place[place]:
                result.tensors[_name(saved)] = reader.tensor(saved.tensor)
        elif options.whole is Whole.AVERAGE:
            taken.update(by_place)
            result.tensors |= _averaged(adapters, module, by_place, options, reader)
        else:
            raise CompatibilityError(
                f"{' and '.join(quoted(adapters[place].name) for place in by_place)} bring {quoted(module)} whole, "
                "expected one of them.",
                hint=_ASK,
            )
        roles = {_name(saved): saved.role for several in by_place.values() for saved in several}
        result.layers |= {name: module for name, role in roles.items() if role in _OF_LAYERS}
        if not _OF_LAYERS.issuperset(roles.values()):
            result.replaced.append(module)
    result.configuration = _announced([adapters[place] for place in sorted(taken)])
    strengths = options.strengths_for(adapters)
    if any(strengths[place] != 1.0 for place in taken):
        result.findings.append(
            Finding(
                "saved_modules_whole",
                f"Strengths weigh ΔW alone: modules that were saved whole are taken whole: "
                f"{summarised(map(quoted, result.modules))}.",
            )
        )
    return result


def _brought(adapters: Sequence[Adapter]) -> dict[str, dict[int, list[SavedTensor]]]:
    """Saved tensors by module, then by adapter."""
    found: dict[str, dict[int, list[SavedTensor]]] = {}
    for place, adapter in enumerate(adapters):
        for saved in adapter.saved:
            found.setdefault(saved.module, {}).setdefault(place, []).append(saved)
    return found


def _winner(adapters: Sequence[Adapter], name: str | None) -> int | None:
    if name is None:
        return None
    for key in ("locator", "name"):
        places = [place for place, adapter in enumerate(adapters) if getattr(adapter, key) == name]
        if len(places) == 1:
            return places[0]
    names = ", ".join(quoted(adapter.name) for adapter in adapters)
    raise LoraLabError(f"The saved modules are to come from {quoted(name)}, expected one of: {names}.")


def canonical_name(name: str) -> str:
    """Name of a tensor as PEFT writes it, without wrappers and with the prefix."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name if name.startswith(PREFIX) else f"{PREFIX}{name.removeprefix('base_model.')}"


def _name(saved: SavedTensor) -> str:
    """Name of the tensor as PEFT writes it where the module has no factors."""
    name = canonical_name(saved.tensor.name)
    return name.replace(NESTED, "") if saved.role in _OF_LAYERS else name


def _averaged(
    adapters: Sequence[Adapter],
    module: str,
    by_place: dict[int, list[SavedTensor]],
    options: CombineOptions,
    reader: Reader,
) -> dict[str, torch.Tensor]:
    """Σ wᵢMᵢ/Σ wᵢ of every tensor of a module."""
    import torch

    strengths = options.strengths_for(adapters)
    total = sum(strengths[place] for place in by_place)
    if total == 0.0:
        raise LoraLabError(
            f"The strengths of those who bring {quoted(module)} add up to zero, which has no mean.", hint=_ASK
        )
    names = {frozenset(map(_name, several)) for several in by_place.values()}
    everything = [saved for several in by_place.values() for saved in several]
    tokens = any(saved.role is SavedRole.TRAINABLE_TOKENS for saved in everything) and not _same_tokens(
        adapters[place] for place in by_place
    )
    shapes = {(_name(saved), saved.tensor.shape) for saved in everything}
    if len(names) > 1 or tokens or len(shapes) > len(next(iter(names))):
        told = ", ".join(f"{quoted(name)} {list(shape)}" for name, shape in sorted(shapes))
        raise CompatibilityError(
            f"What the adapters bring of {quoted(module)} has no mean: {told}, expected the same tensors of one shape.",
            hint="--saved-modules-from NAME takes one adapter's, --skip-saved-modules none.",
        )
    sums: dict[str, torch.Tensor] = {}
    types: dict[str, torch.dtype] = {}
    for place, several in by_place.items():
        for saved in several:
            tensor, name = reader.tensor(saved.tensor), _name(saved)
            part = tensor.to(torch.float64) * (strengths[place] / total)
            sums[name] = sums[name] + part if name in sums else part
            types[name] = torch.promote_types(types.get(name, tensor.dtype), tensor.dtype)
    return {name: tensor.to(types[name]) for name, tensor in sums.items()}


def _same_tokens(adapters: Iterable[Adapter]) -> bool:
    """Whether all of them list the same tokens, so that rows can be averaged one by one."""
    first, *others = [adapter.configuration.get("trainable_token_indices") for adapter in adapters]
    return all(other == first for other in others)


def _indices(said: Any, document: Mapping[str, Any], name: str) -> Any:
    """Which tokens of which embeddings are in the file, `said` of other adapters before."""
    own = document.get("trainable_token_indices")
    if said is None or own == said:
        return own
    if isinstance(said, dict) and isinstance(own, dict) and not said.keys() & own.keys():
        return {**said, **own}
    raise CompatibilityError(
        f"The tokens that {quoted(name)} trained and those of another adapter cannot stand in one configuration: "
        "trainable_token_indices would say both.",
        hint=_ASK,
    )


def _announced(adapters: Iterable[Adapter]) -> dict[str, Any]:
    """Keys of the configuration that name what was taken."""
    modules: list[str] = []
    said: dict[str, Any] = {"modules_to_save": None, "bias": "none"}
    for adapter in adapters:
        document = adapter.configuration
        modules += [name for name in document.get("modules_to_save") or () if name not in modules]
        if any(saved.role is SavedRole.BIAS for saved in adapter.saved) and said["bias"] != "all":
            said["bias"] = document.get("bias", "none")
        if any(saved.role is SavedRole.TRAINABLE_TOKENS for saved in adapter.saved):
            said["trainable_token_indices"] = _indices(said.get("trainable_token_indices"), document, adapter.name)
    said["modules_to_save"] = modules or None
    return said
