"""Which tensor of a base changes, by whom, and what has no place: all of it known before anything is written."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from lora_lab.analyses.scope import refuse, selected
from lora_lab.domain.adapter import DeltaKind, SavedRole
from lora_lab.domain.dtypes import PLAIN_FLOATS
from lora_lab.domain.matching import is_tied, match_modules
from lora_lab.domain.plan import Part
from lora_lab.domain.quantised import require_plain
from lora_lab.domain.report import Finding
from lora_lab.errors import CompatibilityError, quoted
from lora_lab.operations.options import SavedModules

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.adapter import Adapter, Delta, SavedTensor
    from lora_lab.domain.base import Base
    from lora_lab.domain.matching import Match
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.operations.options import MergeOptions

_SHOWN: Final = 5
OUTPUT_LAYER: Final = "lm_head.weight"  # as transformers calls the output layer of every model that ties it
_EMBEDDINGS: Final = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared")
# What acts outside the weights, so that no weight can stand for it.
_NO_WEIGHT: Final = {
    "alora": "acts only after certain tokens, which no weight can say",
    "layer_replication": "counts the layers of a lengthened model, which this base is not",
}


@dataclass(slots=True)
class Changes:
    """Parts by tensor.

    ``added`` are tensors of an adapter that the base has none for, under the name they get; ``untied`` are names that a
    tensor of the base gets besides its own, because two layers that shared it differ now.
    """

    parts: dict[str, list[Part]] = field(default_factory=lambda: defaultdict(list))
    targets: dict[str, TensorRef] = field(default_factory=dict)
    added: dict[str, Part] = field(default_factory=dict)
    untied: dict[str, TensorRef] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def changes_of(adapters: Sequence[Adapter], base: Base, options: MergeOptions) -> Changes:
    """Find what every adapter does to every tensor of the base.

    Raises
    ------
    AdapterError
        an adapter's ΔW cannot be computed from its files.
    CompatibilityError
        a module has no place or another shape, the base is quantised, an adapter does what no weight can stand for, or
        two adapters bring the same whole module.
    """
    require_plain(
        base,
        hint="Merge into the model before it was quantised, then quantise the result.",
        why="nothing is added into codes",
    )
    changes = Changes()
    for place, (adapter, strength) in enumerate(zip(adapters, options.strengths_for(adapters), strict=True)):
        refuse(adapter)
        _require_weights(adapter)
        match = match_modules(adapter, base)
        _add_deltas(changes, adapter, base, match, place, strength, options)
        if options.saved_modules is SavedModules.TAKE:
            _add_saved(changes, adapters, base, match, place, strength, options)
        elif adapter.saved:
            changes.findings.append(
                Finding(
                    "saved_modules_skipped",
                    f"{len(adapter.saved)} saved tensors of {quoted(adapter.name)} are left out.",
                )
            )
    return changes


def _require_weights(adapter: Adapter) -> None:
    for feature in adapter.features:
        if feature.id in _NO_WEIGHT:
            raise CompatibilityError(
                f"{quoted(adapter.name)} cannot be merged: {feature.title} {_NO_WEIGHT[feature.id]}.",
                hint="Keep it as an adapter.",
            )


def _add_deltas(
    changes: Changes,
    adapter: Adapter,
    base: Base,
    match: Match,
    place: int,
    strength: float,
    options: MergeOptions,
) -> None:
    chosen = selected(adapter, options.modules)
    names = {delta.module for delta in chosen}
    clashes = [clash for clash in match.clashes if clash.module in names]
    if clashes:
        first = clashes[0]
        who = "1 module" if len(clashes) == 1 else f"{len(clashes)} modules"
        raise CompatibilityError(
            f"{who} of {quoted(adapter.name)} {'has' if len(clashes) == 1 else 'have'} another shape than "
            f"{quoted(base.name)}: "
            f"{quoted(first.module)} has ΔW {list(first.expected)}, got a weight {list(first.got)}.",
            hint="This is not the base it was trained on, or not in this orientation.",
        )
    lost = [module for module in match.unmatched if module in names]
    if lost:
        _miss(changes, adapter, base, match, lost, options)
    for delta in chosen:
        ref = match.weights.get(delta.module)
        if ref is None:
            continue
        _require_summed(ref, base)
        name = _untied_name(changes, adapter, delta, ref, base, match)
        changes.targets[name] = ref
        changes.parts[name].append(Part(place, strength, delta=delta))
        if delta.lora_bias is not None:
            name = f"{match.path_in_base(delta.module)}.bias"
            bias = base.tensors.get(name)
            if bias is None:
                raise CompatibilityError(
                    f"lora_B of {quoted(delta.module)} has a bias, and {quoted(base.name)} has no {quoted(name)} to "
                    "add it to.",
                    hint="PEFT trains such a bias only where the base has one; this may be another base.",
                )
            _require_summed(bias, base)
            changes.targets[name] = bias
            changes.parts[name].append(Part(place, strength, delta=delta))


def _untied_name(changes: Changes, adapter: Adapter, delta: Delta, ref: TensorRef, base: Base, match: Match) -> str:
    """Name of the tensor that `delta` changes; where two layers share one and only one of them changes, they part."""
    if not _parts_ties(adapter, base):
        return ref.name
    own = f"{match.path_in_base(delta.module)}.weight"
    if own not in base.tensors and delta.kind is not DeltaKind.EXPERTS:
        changes.untied[own] = ref  # the output layer changes, the embedding does not
        return own
    if delta.kind is DeltaKind.EMBEDDING and OUTPUT_LAYER not in base.tensors:
        changes.untied.setdefault(OUTPUT_LAYER, ref)  # the embedding changes, the output layer does not
    return ref.name


def _parts_ties(adapter: Adapter, base: Base) -> bool:
    """Whether layers share a weight in the base, and the adapter was not told to train them as one."""
    return is_tied(base) and not any(feature.id == "weight_tying" for feature in adapter.features)


def _miss(
    changes: Changes, adapter: Adapter, base: Base, match: Match, lost: Sequence[str], options: MergeOptions
) -> None:
    shown = ", ".join(quoted(module) for module in lost[:_SHOWN]) + (" …" if len(lost) > _SHOWN else "")
    share = f"{len(lost)} of {len(adapter.deltas)} modules of {quoted(adapter.name)}"
    sentence = f"{share} are not in {quoted(base.name)}: {shown}"
    if options.is_partial and len(lost) < len(adapter.deltas):
        changes.findings.append(Finding("left_out", f"{sentence}; they are left out."))
        return
    near = match.unmatched[lost[0]]
    meant = f"{quoted(lost[0])} may be {quoted(near[0])}. " if near else ""
    way_out = "" if len(lost) == len(adapter.deltas) else "; --partial leaves them out"
    raise CompatibilityError(f"{sentence}.", hint=f"{meant}lora-lab check says more{way_out}.")


def _require_summed(ref: TensorRef, base: Base) -> None:
    if ref.dtype not in PLAIN_FLOATS:
        raise CompatibilityError(
            f"{quoted(ref.name)} of {quoted(base.name)} has dtype {ref.dtype}, expected a float of at least 16 bits.",
            hint="Merge into a base with plain weights.",
        )


def _add_saved(
    changes: Changes,
    adapters: Sequence[Adapter],
    base: Base,
    match: Match,
    place: int,
    strength: float,
    options: MergeOptions,
) -> None:
    adapter = adapters[place]
    for saved in adapter.saved:
        name = _name_in_base(saved, match, base)
        part = Part(place, strength, saved=saved)
        others = [other.adapter for other in changes.parts.get(name, ()) if other.saved is not None]
        others += [changes.added[name].adapter] if name in changes.added else []
        if others and saved.role is not SavedRole.BIAS:
            winner = options.saved_modules_from
            if winner not in (adapter.name, adapters[others[0]].name):
                both = f"{quoted(adapters[others[0]].name)} and {quoted(adapter.name)}"
                raise CompatibilityError(
                    f"Both {both} bring {quoted(saved.module)} whole, expected one of them.",
                    hint="--saved-modules-from NAME says whose is taken; --skip-saved-modules takes none.",
                )
            if winner != adapter.name:
                continue
            changes.parts[name] = [other for other in changes.parts[name] if other.saved is None]
        _put_saved(changes, adapter, base, name, part)


def _put_saved(changes: Changes, adapter: Adapter, base: Base, name: str, part: Part) -> None:
    saved = part.saved
    assert saved is not None
    ref = base.tensors.get(name, changes.untied.get(name))
    if ref is None:
        if saved.role is SavedRole.TRAINABLE_TOKENS:
            raise CompatibilityError(
                f"{quoted(adapter.name)} trained tokens of {quoted(saved.module)}, which {quoted(base.name)} has not.",
                hint="This is not the base it was trained on.",
            )
        changes.added[name] = replace(part, strength=1.0)
        changes.parts.pop(name, None)
        return
    if saved.role is not SavedRole.TRAINABLE_TOKENS and ref.shape != saved.tensor.shape:
        raise CompatibilityError(
            f"{quoted(adapter.name)} brings {quoted(saved.module)} with the shape {list(saved.tensor.shape)}, "
            f"got {list(ref.shape)} in {quoted(base.name)}.",
            hint="A vocabulary that was resized needs the base resized alike; --skip-saved-modules leaves it out.",
        )
    _require_summed(ref, base)
    changes.targets[name] = ref
    changes.parts[name].append(part)
    is_copy = saved.role is SavedRole.MODULES_TO_SAVE and saved.module.rpartition(".")[2] in _EMBEDDINGS
    if is_copy and OUTPUT_LAYER not in (*base.tensors, *changes.added) and _parts_ties(adapter, base):
        changes.untied.setdefault(OUTPUT_LAYER, ref)  # PEFT trains a copy: the output layer keeps what it had


def _name_in_base(saved: SavedTensor, match: Match, base: Base) -> str:
    """Name that a saved tensor has, or gets, in the base."""
    leaf = "weight" if saved.role is SavedRole.TRAINABLE_TOKENS else saved.tensor.name.rpartition(".")[2]
    moved = f"{match.path_in_base(saved.module)}.{leaf}"
    plain = f"{saved.module}.{leaf}"
    return moved if moved in base.tensors or plain not in base.tensors else plain
