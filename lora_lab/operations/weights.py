"""From the parts that adapters have in one tensor to the update of its rows."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lora_lab.domain.adapter import DeltaKind, SavedRole
from lora_lab.errors import AdapterError, CompatibilityError, quoted
from lora_lab.formats.orientation import is_turned
from lora_lab.linalg.updates import Dense, Term, Update

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.adapter import Adapter, Delta
    from lora_lab.domain.plan import Part, Step
    from lora_lab.extension.contracts import Factors, Reader


class Band(NamedTuple):
    """Rows of a tensor, seen as a matrix, that one update covers: all of it, or one expert."""

    first: int
    end: int
    update: Update


def matrix_shape(step: Step) -> tuple[int, int]:
    """The tensor as rows and columns: a bias is one row, a kernel has its first side, experts lie above each other.

    Examples
    --------
    A kernel (8, 4, 3, 3) is (8, 36), three experts (3, 8, 4) are (24, 4).
    """
    shape = step.shape
    if len(shape) == 1:
        return (1, shape[0])
    if any(part.delta is not None and part.delta.kind is DeltaKind.EXPERTS for part in step.parts):
        return (shape[0] * shape[1], shape[2])
    return (shape[0], prod(shape[1:]))


def bands_of(step: Step, adapters: Sequence[Adapter], reader: Reader) -> list[Band]:
    """Read what the parts of `step` need and make the updates of its rows.

    Raises
    ------
    NumericalError
        a factor or a saved tensor holds NaN or infinity.
    CompatibilityError
        a part does not make a matrix of the tensor's shape.
    """
    shape = matrix_shape(step)
    experts: dict[int, list[Part]] = {}
    for part in step.parts:
        if part.delta is not None and part.delta.expert is not None:
            experts.setdefault(part.delta.expert, []).append(part)
    if not experts:
        return [Band(0, shape[0], _update(step.name, shape, step, step.parts, adapters, reader))]
    height = step.shape[1]
    return [
        Band(
            expert * height,
            (expert + 1) * height,
            _update(f"{step.name}[{expert}]", (height, shape[1]), step, parts, adapters, reader),
        )
        for expert, parts in sorted(experts.items())
    ]


def _update(
    name: str, shape: tuple[int, int], step: Step, parts: Sequence[Part], adapters: Sequence[Adapter], reader: Reader
) -> Update:
    terms = []
    dense = []
    for part in parts:
        if part.saved is not None:
            dense.append(_saved(part, step, adapters[part.adapter], reader, shape))
        elif part.delta is not None and len(step.shape) == 1:
            dense.append(_lora_bias(part, part.delta, reader))
        elif part.delta is not None:
            terms.append(_term(part.strength, part.delta, reader.factors(part.delta), reader, shape))
    return Update(name, shape, terms, dense)


def _term(strength: float, delta: Delta, factors: Factors, reader: Reader, shape: tuple[int, int]) -> Term:
    turned = is_turned(delta, factors, shape, hint="Merge it with the library that trained it.")
    magnitude = None if delta.magnitude is None else reader.tensor(delta.magnitude).reshape(-1)
    if not turned:
        return Term(factors.lora_A, factors.lora_B, factors.scaling, strength, magnitude)
    # (B·A)ᵀ = Aᵀ·Bᵀ; DoRA's norm per output then runs down a column.
    return Term(factors.lora_B.T, factors.lora_A.T, factors.scaling, strength, magnitude, is_by_column=True)


def _lora_bias(part: Part, delta: Delta, reader: Reader) -> Dense:
    """scaling · bias of lora_B, which is added to the base's bias."""
    assert delta.lora_bias is not None
    values = reader.tensor(delta.lora_bias).to(torch.float64)[None, :] * delta.scaling
    return Dense(values, part.strength, is_target=False)


def _saved(part: Part, step: Step, adapter: Adapter, reader: Reader, shape: tuple[int, int]) -> Dense:
    saved = part.saved
    assert saved is not None
    values = reader.tensor(saved.tensor)
    if saved.role is not SavedRole.TRAINABLE_TOKENS:
        return Dense(values.reshape(shape), part.strength)
    rows = torch.tensor(_token_rows(adapter, saved.module, values.shape[0]), dtype=torch.int64)
    if rows.numel() and int(rows.max()) >= shape[0]:
        raise CompatibilityError(
            f"{quoted(adapter.name)} trained token {int(rows.max())}, got {shape[0]} rows in {quoted(step.name)}.",
            hint="The base's vocabulary is smaller than the one it was trained on.",
        )
    order = torch.argsort(rows)
    return Dense(values[order], part.strength, rows=rows[order])


def _token_rows(adapter: Adapter, module: str, count: int) -> list[int]:
    """Rows that trainable tokens stand for, as the configuration lists them."""
    listed: Any = adapter.configuration.get("trainable_token_indices")
    if isinstance(listed, dict):
        fitting = [value for name, value in listed.items() if module == name or module.endswith(f".{name}")]
        listed = fitting[0] if len(fitting) == 1 else None
    is_whole = isinstance(listed, list) and all(type(token) is int and token >= 0 for token in listed)
    if not is_whole or len(set(listed)) != count:
        raise AdapterError(
            f"trainable_token_indices of {quoted(adapter.name)} does not list the {count} tokens that the file holds "
            f"for {quoted(module)}.",
            hint="The configuration and the weights are not of one adapter.",
        )
    return list(listed)
