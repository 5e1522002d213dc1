"""Which tensor of a fine-tuned checkpoint is which of its base, and which matrices they hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from lora_lab.domain.adapter import Adapter, Delta, DeltaKind
from lora_lab.domain.dtypes import PLAIN_FLOATS
from lora_lab.domain.matching import match_modules
from lora_lab.domain.modules import layer_of, projection_of
from lora_lab.errors import CompatibilityError

if TYPE_CHECKING:
    from lora_lab.domain.base import Base
    from lora_lab.domain.tensors import TensorRef

_WEIGHT: Final = ".weight"
# Names, besides those with "embed" in them, under which models keep one row for each token or position.
_VOCABULARY: Final = frozenset({"wte", "wpe", "lm_head", "output", "proj_out", "decoder", "shared"})
_EXPERTS: Final = ("expert", "moe")


class Matrix(NamedTuple):
    """One matrix of both checkpoints.

    shape : rows and columns that are compared: those both have, where the vocabulary was resized
    expert : which of the matrices of a tensor of experts; None when the tensor is one matrix
    """

    module: str
    before: TensorRef
    after: TensorRef
    shape: tuple[int, int]
    expert: int | None = None


class Other(NamedTuple):
    """A vector or scalar of both checkpoints: a bias, the weight of a norm."""

    name: str
    before: TensorRef
    after: TensorRef


@dataclass(slots=True)
class Pairs:
    """Everything that two checkpoints have in common, and what they have not."""

    prefix: str
    matrices: list[Matrix] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)
    only_in_a: list[str] = field(default_factory=list)
    only_in_b: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    clashes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # no plain floats on one side: tables of integers, packed


def pair_checkpoints(base: Base, finetuned: Base) -> Pairs:
    """Find for each tensor of `finetuned` the one it was trained from.

    One change of prefix, found as for an adapter (:mod:`lora_lab.domain.matching`), is allowed. Matrices of a tensor
    of experts (experts, out, in) are pairs of their own, called ``module[expert]``; any other tensor of more than two
    sides is flattened to (out, rest) once sides of length 1 are dropped, as a convolution multiplies.

    Raises
    ------
    CompatibilityError
        two changes of prefix fit equally well.
    """
    try:
        match = match_modules(_as_adapter(finetuned), base)
    except CompatibilityError as error:
        error.hint = "Give two checkpoints of one model, or the part of the model that was trained."
        raise
    pairs = Pairs(match.prefix)
    used = set()
    clashing = {clash.module: clash.tensor for clash in match.clashes}
    for name, after in finetuned.tensors.items():
        module = name.removesuffix(_WEIGHT)
        before = match.weights.get(module) or base.tensors.get(clashing.get(module, match.path_in_base(name)))
        if before is None:
            pairs.only_in_b.append(name)
            continue
        used.add(before.name)
        _place(pairs, module if len(after.shape) >= 2 else name, before, after)
    pairs.only_in_a = [name for name in base.tensors if name not in used]
    return pairs


def _as_adapter(finetuned: Base) -> Adapter:
    """A checkpoint as the full-rank update that it is, so that its weights find their places as modules do."""
    deltas = tuple(
        Delta(name.removesuffix(_WEIGHT), DeltaKind.LINEAR, ref, ref, min(ref.shape), 1.0, 1.0, ref.shape)
        for name, ref in finetuned.tensors.items()
        if len(ref.shape) >= 2
    )
    return Adapter(finetuned.name, finetuned.locator, finetuned.path, "", deltas, finetuned.shards)


def _place(pairs: Pairs, module: str, before: TensorRef, after: TensorRef) -> None:
    if before.dtype not in PLAIN_FLOATS or after.dtype not in PLAIN_FLOATS:
        pairs.unreadable.append(f"{module} ({before.dtype} and {after.dtype})")
        return
    if before.shape != after.shape:
        rows = _common_rows(module, before.shape, after.shape)
        if rows is None:
            pairs.clashes.append(f"{module} {_shown(before.shape)} and {_shown(after.shape)}")
            return
        pairs.resized.append(f"{module}: {before.shape[0]} rows in the base, {after.shape[0]} in the fine-tune")
        pairs.matrices.append(Matrix(module, before, after, (rows, after.shape[1])))
        return
    shape = after.shape
    if len(shape) == 3 and any(word in module for word in _EXPERTS):
        rows, columns = shape[1:]
        for expert in range(shape[0]):
            pairs.matrices.append(Matrix(f"{module}[{expert}]", before, after, (rows, columns), expert))
        return
    flat = matrix_shape(shape)
    if flat is None:
        pairs.others.append(Other(after.name, before, after))
    else:
        pairs.matrices.append(Matrix(module, before, after, flat))


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns of a tensor as one matrix; None when it is a vector.

    Examples
    --------
    >>> matrix_shape((64, 3, 7, 7)), matrix_shape((1, 197, 768)), matrix_shape((1, 1, 768))
    ((64, 147), (197, 768), None)
    """
    if len(shape) > 2:
        shape = tuple(side for side in shape if side != 1)
    if len(shape) < 2:
        return None
    columns = 1
    for side in shape[1:]:
        columns *= side
    return shape[0], columns


def _common_rows(module: str, before: tuple[int, ...], after: tuple[int, ...]) -> int | None:
    """Rows that a table of tokens has on both sides; None for what is none, or differs in its columns too."""
    name = projection_of(module)
    is_vocabulary = layer_of(module) is None and ("embed" in name or name in _VOCABULARY)
    if is_vocabulary and len(before) == len(after) == 2 and before[1] == after[1]:
        return min(before[0], after[0])
    return None


def _shown(shape: tuple[int, ...]) -> str:
    return "×".join(str(side) for side in shape) or "a scalar"
