"""What of a fine-tune becomes a factored update, what goes along whole, and what can do neither: from headers alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from lora_lab.analyses.checkpoint_pairs import Other, pair_checkpoints
from lora_lab.domain.adapter import DeltaKind
from lora_lab.domain.architectures import architecture_of
from lora_lab.domain.modules import natural_key, projection_of, select_modules
from lora_lab.domain.quantised import require_plain
from lora_lab.domain.sheet import WeightKind
from lora_lab.errors import CompatibilityError, LoraLabError, quoted
from lora_lab.operations.parameter_files import FUSED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.analyses.checkpoint_pairs import Matrix, Pairs
    from lora_lab.domain.base import Base
    from lora_lab.domain.tensors import TensorRef

_WEIGHT: Final = ".weight"
_BIAS: Final = ".bias"
_BEFORE: Final = "Give the checkpoint that it was made from, or dequantise it first."
_BARE: Final = "a parameter that no module of its own holds"
# Names under which models keep a table that is looked up, besides those with "embed" in them.
_TABLES: Final = frozenset({"wte", "wpe", "shared"})
# Of those with "embed" in them, the ones that are multiplied by.
_PROJECTIONS: Final = frozenset({"embed_out", "embed_proj"})
# Whose experts are stored as (experts, in, out), and whose modules tell PEFT so.
_TURNED_EXPERTS: Final = frozenset({"gpt_oss", "aria", "aria_text", "openai_privacy_filter"})
_CONV1D_FAMILIES: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_NAMES: Final = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})


@dataclass(frozen=True, slots=True)
class Piece:
    """A matrix whose change is factored.

    is_transposed : ΔW as the base stores it is (lora_B @ lora_A)ᵀ
    """

    module: str
    kind: DeltaKind
    matrix: Matrix
    is_transposed: bool = False

    @property
    def parameter(self) -> str:
        """Path of the weight: for one of several experts, that of all of them."""
        return self.module.removesuffix(f"[{self.matrix.expert}]")


@dataclass(slots=True)
class Division:
    """Every tensor of a fine-tune, by what can be done with it.

    whole : tensors that no factors stand for, by the module that holds them
    biases : of modules whose weight is factored
    stuck : tensors of both that neither factors nor whole modules can carry, with the reason; told where they changed
    left : names that are left out in any case, with the reason
    """

    prefix: str
    pieces: list[Piece] = field(default_factory=list)
    whole: dict[str, list[Other | TensorRef]] = field(default_factory=dict)
    biases: list[Other] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    stuck: dict[str, tuple[str, Other]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    only_in_base: list[str] = field(default_factory=list)
    is_fan_in_fan_out: bool = False


def divide(base: Base, finetuned: Base, globs: Sequence[str] = ()) -> Division:
    """Look at every tensor of `finetuned` and say what it becomes.

    Parameters
    ----------
    globs : of modules that are factored; none means all. What they leave out stays as the base has it.

    Raises
    ------
    CompatibilityError
        an input has no weights or is quantised, or the two have no matrix in common.
    LoraLabError
        no matrix matches the globs.
    """
    for model in (base, finetuned):
        require_plain(model, hint=_BEFORE)
    pairs = pair_checkpoints(base, finetuned)
    if not pairs.matrices:
        raise CompatibilityError(
            f"{quoted(base.name)} and {quoted(finetuned.name)} have no matrix in common.",
            hint="Give two checkpoints of one model.",
        )
    chosen = _chosen(pairs, globs)
    division = Division(pairs.prefix, only_in_base=pairs.only_in_a)
    kinds = _known_kinds(finetuned)
    for matrix in pairs.matrices:
        if matrix.module in chosen:
            _place(division, matrix, kinds, finetuned)
    if not globs:
        _place_others(division, pairs, base, finetuned)
    _leave_unordered(division)
    transposed = {piece.is_transposed for piece in division.pieces if piece.kind is DeltaKind.LINEAR}
    if transposed == {True, False}:
        for piece in [piece for piece in division.pieces if piece.kind is DeltaKind.LINEAR and not piece.is_transposed]:
            division.pieces.remove(piece)
            division.left[piece.module] = "stored the other way round than the other layers, which PEFT cannot say"
    division.is_fan_in_fan_out = True in transposed
    division.pieces.sort(key=lambda piece: natural_key(piece.module))
    return division


def _chosen(pairs: Pairs, globs: Sequence[str]) -> set[str]:
    names = [matrix.module for matrix in pairs.matrices]
    chosen = set(select_modules(names, globs))
    if globs and not chosen:
        raise LoraLabError(
            f"No matrix matches {', '.join(map(quoted, globs))}, expected a name such as {quoted(names[0])}.",
            hint="lora-lab inspect lists the tensors.",
        )
    return chosen


def _known_kinds(model: Base) -> dict[str, WeightKind]:
    """What the model's family says of its weights; empty where it is not known."""
    try:
        return {weight.name: weight.kind for weight in architecture_of(model.configuration).weights}
    except CompatibilityError:
        return {}


def _place(division: Division, matrix: Matrix, kinds: Mapping[str, WeightKind], finetuned: Base) -> None:
    after = matrix.after
    if matrix.before.shape != after.shape:
        rows = (matrix.before.shape[0], after.shape[0])
        division.resized.append(f"{matrix.module} ({rows[0]} rows in the base, {rows[1]} in the fine-tune)")
        division.whole.setdefault(matrix.module, []).append(after)
    elif matrix.expert is not None:
        is_turned = finetuned.configuration.get("model_type") in _TURNED_EXPERTS
        division.pieces.append(Piece(matrix.module, DeltaKind.EXPERTS, matrix, is_turned))
    elif not after.name.endswith(_WEIGHT):
        division.stuck[after.name] = (_BARE, Other(after.name, matrix.before, after))
    elif len(after.shape) > 2 and (1 in after.shape[:2] or len(after.shape) > 5):
        division.stuck[after.name] = ("a convolution in groups", Other(after.name, matrix.before, after))
    else:
        kind, is_transposed = _kind_of(matrix, kinds, finetuned)
        division.pieces.append(Piece(matrix.module, kind, matrix, is_transposed))


def _leave_unordered(division: Division) -> None:
    """Leave experts out whose module has several parameters of which nobody knows the order that PEFT nests them in."""
    by_root: dict[str, set[str]] = {}
    for piece in division.pieces:
        if piece.kind is DeltaKind.EXPERTS:
            root, _, name = piece.parameter.rpartition(".")
            by_root.setdefault(root, set()).add(name)
    unknown = {root for root, names in by_root.items() if len(names) > 1 and names != set(FUSED)}
    for piece in list(division.pieces):
        if piece.kind is DeltaKind.EXPERTS and piece.parameter.rpartition(".")[0] in unknown:
            division.pieces.remove(piece)
            ref = piece.matrix.after
            why = "experts of several parameters whose order in the model is not known"
            division.stuck[ref.name] = (why, Other(ref.name, piece.matrix.before, ref))


def _kind_of(matrix: Matrix, kinds: Mapping[str, WeightKind], finetuned: Base) -> tuple[DeltaKind, bool]:
    if len(matrix.after.shape) > 2:
        return DeltaKind.CONV, False
    known = kinds.get(matrix.after.name)
    if known is None:
        name = projection_of(matrix.module)
        if name in _TABLES or ("embed" in name and name not in _PROJECTIONS):
            known = WeightKind.EMBEDDING
        elif finetuned.configuration.get("model_type") in _CONV1D_FAMILIES and name in _CONV1D_NAMES:
            known = WeightKind.CONV1D
    if known is WeightKind.EMBEDDING:
        return DeltaKind.EMBEDDING, True
    return DeltaKind.LINEAR, known is WeightKind.CONV1D


def _place_others(division: Division, pairs: Pairs, base: Base, finetuned: Base) -> None:
    """Vectors, scalars, and tensors that the base lacks."""
    factored = {piece.module for piece in division.pieces if piece.kind is not DeltaKind.EMBEDDING}
    for other in pairs.others:
        module, leaf = _holder(other.name)
        if leaf == _BIAS and module in factored:
            division.biases.append(other)
        elif leaf:
            division.whole.setdefault(module, []).append(other)
        else:
            division.stuck[other.name] = (_BARE, other)
    for name in pairs.only_in_b:
        module, leaf = _holder(name)
        if leaf and module not in factored:
            division.whole.setdefault(module, []).append(finetuned.tensors[name])
        else:
            division.left[name] = "not in the base"
    for text in pairs.clashes:
        division.left[text] = "of another shape"
    for text in pairs.unreadable:
        module = text.rpartition(" (")[0]
        name = module if module in finetuned.tensors else f"{module}{_WEIGHT}"
        before, after = base.tensors.get(name), finetuned.tensors.get(name)
        if before is not None and after is not None and before.shape == after.shape:
            division.stuck[name] = ("no plain floats", Other(name, before, after))
        else:
            division.left[text] = "no plain floats"


def _holder(name: str) -> tuple[str, str]:
    for leaf in (_WEIGHT, _BIAS):
        if name.endswith(leaf):
            return name.removesuffix(leaf), leaf
    return name, ""
