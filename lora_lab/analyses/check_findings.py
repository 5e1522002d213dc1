"""What a person should know before an adapter is put on a base, one sentence each."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.trained_on import base_name_findings
from lora_lab.domain.adapter import DeltaKind, Effect, SavedRole
from lora_lab.domain.modules import layer_of, projection_of
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.domain.quantised import packed_weights, quantisation_of
from lora_lab.domain.report import Finding
from lora_lab.errors import LoraLabError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lora_lab.domain.adapter import Adapter, Delta, SavedTensor
    from lora_lab.domain.base import Base
    from lora_lab.domain.matching import Match
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import AnalysisContext, Factors

# Findings that say that something cannot land, though every module has its place.
UNLANDED: Final = frozenset({"refused", "tokens_without_place", "unsound_factors"})
_MOST_NAMES: Final = 6
_OUTPUT_LAYERS: Final = frozenset({"lm_head", "embed_out", "proj_out"})


def before_landing(adapter: Adapter, base: Base) -> Iterator[Finding]:
    """Yield what names, features and the base's dtypes say, before any module is matched."""
    for feature in adapter.features:
        if feature.effect is Effect.REFUSED:
            detail = f": {feature.detail}" if feature.detail else "."
            yield Finding("refused", f"{feature.title}{detail}")
    if not adapter.base_model:
        yield Finding("base_model_unsaid", f"{quoted(adapter.name)} does not say which base it was trained on.")
    yield from base_name_findings(adapter, base)
    how = quantisation_of(base)
    if how:
        packed = packed_weights(base)
        meant = "their shapes are not those of the matrices" if packed else "they are not the weights trained on"
        yield Finding("quantised_base", f"{quoted(base.name)} is quantised ({how}): {meant}.")


def landing_findings(adapter: Adapter, base: Base, match: Match) -> Iterator[Finding]:
    """Yield what the match and the saved tensors say."""
    if adapter.deltas and not match.weights and not match.clashes:
        yield Finding("wrong_architecture", _wrong_architecture(adapter, base))
    yield from _missing_layers(base, match)
    told = False
    for clash in match.clashes:
        delta = adapter.by_module[clash.module]
        rows = _rows_differ(delta, clash.expected, clash.got)
        if rows and not told:
            told = True
            yield _resized(clash.module, *rows)
    for saved in adapter.saved:
        yield from _saved_finding(saved, adapter, base, match)


def dead_modules(deltas: Sequence[Delta], context: AnalysisContext) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Find the modules whose ΔW is zero, and those whose factors cannot be read or are not finite.

    Returns
    -------
    rows of the table ``dead``, and one finding for each module that is unsound
    """
    rows: list[dict[str, Any]] = []
    unsound: list[Finding] = []
    place = 0
    while place < len(deltas):
        try:
            for delta, factors in context.reader.factors_of(deltas[place:]):
                stop_if_cancelled(context.observer)
                place += 1
                context.observer.advance(place, len(deltas), delta.module)
                reason = _death(factors)
                if reason:
                    rows.append({"module": delta.module, "reason": reason})
        except LoraLabError as error:
            stop_if_cancelled(context.observer)
            unsound.append(Finding("unsound_factors", str(error), deltas[place].module))
            place += 1
    return rows, unsound


def _death(factors: Factors) -> str:
    """Why scaling·B·A is exactly zero; empty when it is not, or not for a reason that shows in the factors."""
    if factors.scaling == 0:
        return "the scaling is zero"
    columns = factors.lora_B.ne(0).any(dim=0)
    rows = factors.lora_A.ne(0).any(dim=1)
    if not columns.any():
        return "lora_B is zero, as before training"
    if not rows.any():
        return "lora_A is zero"
    if not (columns & rows).any():
        return "every column of lora_B meets a zero row of lora_A"
    return ""


def _wrong_architecture(adapter: Adapter, base: Base) -> str:
    has = sorted(name.removesuffix(".weight") for name, ref in base.tensors.items() if len(ref.shape) >= 2)
    family = base.configuration.get("model_type")
    called = f" of the family {quoted(family)}" if isinstance(family, str) else ""
    return (
        f"No module of {quoted(adapter.name)} is in {quoted(base.name)}{called}: the adapter is for "
        f"{_projections(adapter.modules)}, and the base has {_projections(has)}."
    )


def _projections(modules: Iterable[str]) -> str:
    """Kinds of matrices, the most frequent first, and in how many layers."""
    modules = list(modules)
    counts = Counter(projection_of(module) for module in modules)
    names = [name for name, _ in counts.most_common(_MOST_NAMES)]
    more = f" and {len(counts) - len(names)} more" if len(counts) > len(names) else ""
    layers = {layer for module in modules if (layer := layer_of(module)) is not None}
    where = f" in {len(layers)} layers" if len(layers) > 1 else ""
    return f"{', '.join(names) or 'nothing'}{more}{where}"


def _missing_layers(base: Base, match: Match) -> Iterator[Finding]:
    layers = {layer for name in base.tensors if (layer := layer_of(name)) is not None}
    lost = [layer for module in match.unmatched if (layer := layer_of(module)) is not None and layer not in layers]
    if layers and lost and (match.weights or match.clashes):
        yield Finding(
            "layers_missing",
            f"{len(lost)} modules belong to layers {min(lost)} to {max(lost)}, and {quoted(base.name)} has layers "
            f"{min(layers)} to {max(layers)}.",
        )


def _rows_differ(delta: Delta, expected: Sequence[int], got: Sequence[int]) -> tuple[int, int] | None:
    """Rows of the adapter's side and of the base's, where only the vocabulary differs."""
    is_vocabulary = delta.kind is DeltaKind.EMBEDDING or delta.module.rpartition(".")[2] in _OUTPUT_LAYERS
    if is_vocabulary and len(expected) == len(got) == 2 and expected[1] == got[1] and expected[0] != got[0]:
        return expected[0], got[0]
    return None


def _resized(module: str, adapters: int, bases: int) -> Finding:
    return Finding(
        "vocabulary_resized",
        f"The vocabulary differs: the adapter has {adapters} rows for {quoted(module)}, the base {bases}.",
        module,
    )


def _saved_finding(saved: SavedTensor, adapter: Adapter, base: Base, match: Match) -> Iterator[Finding]:
    place = _place(saved, base, match)
    shape = saved.tensor.shape
    if place is None:
        if saved.role is SavedRole.TRAINABLE_TOKENS:
            yield Finding(
                "tokens_without_place",
                f"The trained tokens of {quoted(saved.module)} have no embedding in {quoted(base.name)}.",
                saved.module,
            )
        else:
            yield Finding(
                "saved_without_place",
                f"The saved tensor {quoted(saved.tensor.name)} has no place in {quoted(base.name)}; merging would add "
                "it.",
                saved.module,
            )
    elif saved.role is SavedRole.TRAINABLE_TOKENS:
        most = _largest_token(adapter)
        if shape[-1] != place.shape[-1] or (most is not None and most >= place.shape[0]):
            wanted = f"token {most}" if most is not None and most >= place.shape[0] else f"{shape[-1]} columns"
            yield Finding(
                "tokens_without_place",
                f"The trained tokens of {quoted(saved.module)} need {wanted}, and {quoted(place.name)} has the shape "
                f"{_shown(place.shape)}.",
                saved.module,
            )
    elif shape != place.shape:
        is_resized = len(shape) == len(place.shape) == 2 and shape[1] == place.shape[1] and _is_vocabulary(saved)
        if is_resized:
            yield _resized(saved.module, shape[0], place.shape[0])
        else:
            yield Finding(
                "saved_shape_differs",
                f"The saved tensor {quoted(saved.tensor.name)} has the shape {_shown(shape)}, the base's has "
                f"{_shown(place.shape)}; merging would replace it.",
                saved.module,
            )


def _place(saved: SavedTensor, base: Base, match: Match) -> TensorRef | None:
    """The base's tensor that a saved one replaces, under the moved path or under its own."""
    leaf = "weight" if saved.role is SavedRole.TRAINABLE_TOKENS else saved.tensor.name.rpartition(".")[2]
    for module in (match.path_in_base(saved.module), saved.module):
        found = base.tensors.get(f"{module}.{leaf}" if module else leaf)
        if found is not None:
            return found
    return None


def _is_vocabulary(saved: SavedTensor) -> bool:
    return saved.role is SavedRole.EMBEDDING_LAYER or "embed" in saved.module or saved.module.endswith("lm_head")


def _largest_token(adapter: Adapter) -> int | None:
    indices: Any = adapter.configuration.get("trainable_token_indices")
    lists = list(indices.values()) if isinstance(indices, dict) else [indices]
    tokens = [token for found in lists if isinstance(found, list) for token in found if type(token) is int]
    return max(tokens, default=None)


def _shown(shape: Sequence[int]) -> str:
    return "×".join(str(side) for side in shape)
