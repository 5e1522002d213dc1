"""Where in a base model the modules of an adapter are.

An adapter trained on a task model calls its modules ``bert.encoder.layer.0…`` where the file of the plain model says
``encoder.layer.0…``. One change of prefix, the same for every module, is looked for: the one that puts most modules on
weights of their own shape. Two that do it equally well are told apart by a person, never by us.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.adapter import DeltaKind
from lora_lab.domain.modules import layer_of
from lora_lab.domain.prefixes import IDENTITY, moved, moves_between, pattern_of
from lora_lab.errors import CompatibilityError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.adapter import Adapter, Delta
    from lora_lab.domain.base import Base
    from lora_lab.domain.prefixes import Move
    from lora_lab.domain.tensors import TensorRef

_WEIGHT: Final = ".weight"
_MOST_SUGGESTIONS: Final = 3
_OUTPUT_LAYERS: Final = ("lm_head", "embed_out", "output", "decoder")


@dataclass(frozen=True, slots=True)
class Clash:
    """A module whose weight is in the base, with another shape."""

    module: str
    tensor: str
    expected: tuple[int, ...]  # of ΔW
    got: tuple[int, ...]  # of the base's weight


@dataclass(frozen=True, slots=True)
class Match:
    """Modules of an adapter on the weights of a base.

    ``weights`` holds those whose shape fits, in the adapter's order; for an expert, the tensor of all experts.
    """

    stripped: str  # components taken from the front of a module's path, dotted
    added: str  # components put there
    weights: Mapping[str, TensorRef]
    unmatched: Mapping[str, tuple[str, ...]]  # with paths of the base that may be meant
    clashes: tuple[Clash, ...]

    @property
    def prefix(self) -> str:
        """What happens to a module's path, in words; empty when nothing does."""
        if self.stripped and self.added:
            return f"{self.stripped}. replaced by {self.added}."
        if self.stripped:
            return f"{self.stripped}. removed"
        return f"{self.added}. added" if self.added else ""

    def path_in_base(self, module: str) -> str:
        """What the base calls `module`."""
        return moved(module, (self.stripped, self.added)) or module


def match_modules(adapter: Adapter, base: Base) -> Match:
    """Find the weight of each module.

    Raises
    ------
    CompatibilityError
        two changes of prefix fit equally well, for instance those to a text and to a vision tower.

    Notes
    -----
    A module of the output layer is matched with the embedding's weight when the base ties the two.
    O(modules·prefixes + weights) time.
    """
    places = places_of(base)
    moves = moves_between((delta.weight_path for delta in adapter.deltas), places) | {IDENTITY}
    scores = {move: _score(adapter.deltas, places, move) for move in moves}
    best = max(scores.values())
    winners = [move for move, score in scores.items() if score == best]
    if len(winners) > 1 and IDENTITY not in winners and best != (0, 0):
        shown = " and ".join(quoted(moved(adapter.modules[0], move) or adapter.modules[0]) for move in winners[:2])
        raise CompatibilityError(
            f"Module {quoted(adapter.modules[0])} of {quoted(adapter.name)} may be {shown} in {quoted(base.name)}; "
            f"{len(winners)} prefixes fit equally well, expected one.",
            hint="Give the part of the base that the adapter was trained on.",
        )
    return _matched(adapter, base, places, IDENTITY if IDENTITY in winners else winners[0])


def places_of(base: Base) -> dict[str, TensorRef]:
    """Weights that a module may stand for: matrices and kernels under their module's path, parameters under their own.

    Examples
    --------
    ``h.0.attn.c_attn.weight`` is at ``h.0.attn.c_attn``, ``experts.gate_up_proj`` at its own name.
    """
    return {name.removesuffix(_WEIGHT): ref for name, ref in base.tensors.items() if len(ref.shape) >= 2}


def is_tied(base: Base) -> bool:
    """Whether the base says that its output layer shares the embedding's weight."""
    configuration: Mapping[str, Any] = base.configuration
    documents = (configuration, configuration.get("text_config"))
    return any(isinstance(document, dict) and document.get("tie_word_embeddings") is True for document in documents)


def _matched(adapter: Adapter, base: Base, places: Mapping[str, TensorRef], move: Move) -> Match:
    weights: dict[str, TensorRef] = {}
    clashes = []
    lost = []
    for delta in adapter.deltas:
        ref = _place(delta, places, move) or _tied(delta, base, places)
        if ref is None:
            lost.append(delta)
        elif _fits(delta, ref):
            weights[delta.module] = ref
        else:
            clashes.append(Clash(delta.module, ref.name, delta.shape, ref.shape))
    return Match(*move, weights, _suggestions(lost, places), tuple(clashes))


def _score(deltas: Sequence[Delta], places: Mapping[str, TensorRef], move: Move) -> tuple[int, int]:
    found = [(delta, ref) for delta in deltas if (ref := _place(delta, places, move)) is not None]
    return sum(_fits(delta, ref) for delta, ref in found), len(found)


def _place(delta: Delta, places: Mapping[str, TensorRef], move: Move) -> TensorRef | None:
    path = moved(delta.weight_path, move)
    return None if path is None else places.get(path)


def _fits(delta: Delta, ref: TensorRef) -> bool:
    if delta.kind is DeltaKind.EXPERTS:
        sides = ref.shape[1:]
        return len(ref.shape) == 3 and ref.shape[0] == delta.experts and sides in (delta.shape, delta.shape[::-1])
    return ref.shape == delta.shape


def _tied(delta: Delta, base: Base, places: Mapping[str, TensorRef]) -> TensorRef | None:
    """The embedding's weight for an output layer that shares it and is therefore not in the file."""
    if not is_tied(base) or delta.module.rpartition(".")[2] not in _OUTPUT_LAYERS:
        return None
    fitting = [ref for path, ref in places.items() if layer_of(path) is None and ref.shape == delta.shape]
    return fitting[0] if len(fitting) == 1 else None


def _suggestions(lost: Sequence[Delta], places: Mapping[str, TensorRef]) -> dict[str, tuple[str, ...]]:
    """Paths of the base that are spelt like the lost ones; compared by pattern, of which there are few."""
    by_pattern: defaultdict[str, list[str]] = defaultdict(list)
    for path in places:
        by_pattern[pattern_of(path)].append(path)
    known: dict[str, list[str]] = {}
    found = {}
    for delta in lost:
        pattern = pattern_of(delta.module)
        if pattern not in known:
            known[pattern] = get_close_matches(pattern, by_pattern, n=_MOST_SUGGESTIONS, cutoff=0.6)
        found[delta.module] = tuple(_like(delta.module, by_pattern[close]) for close in known[pattern])
    return found


def _like(module: str, paths: Sequence[str]) -> str:
    layer = layer_of(module)
    return next((path for path in paths if layer_of(path) == layer), paths[0])
