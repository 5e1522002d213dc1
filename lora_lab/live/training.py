"""A training loop for whatever parameters it is given: an adapter's, or a whole model's."""

from __future__ import annotations

from math import cos, isfinite, pi
from typing import TYPE_CHECKING, TypeVar

import torch

from lora_lab.errors import NumericalError, OperationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

Batch = TypeVar("Batch")


def train(
    parameters: Iterable[nn.Parameter],
    batches: Iterable[Batch],
    loss: Callable[[Batch], Tensor],
    *,
    steps: int,
    learning_rate: float,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    largest_norm: float = 1.0,
    watch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Take `steps` steps of AdamW, one for each batch, and return the losses.

    The rate rises in a line over `warmup_steps`, then falls along a half cosine to zero.

    Parameters
    ----------
    parameters : what is trained; they must require gradients
    batches : at least `steps` of them; their order is the only randomness here
    loss : scalar loss of one batch
    learning_rate : the highest rate
    weight_decay : decoupled, per unit of learning rate
    largest_norm : gradients are scaled down to this 2-norm over all parameters
    watch : called with the number of steps taken and the last loss

    Raises
    ------
    NumericalError
        a loss is not finite.
    OperationError
        there are fewer batches than steps.

    Notes
    -----
    AdamW: Loshchilov & Hutter 2019 (arXiv 1711.05101). Memory: two moments beside each parameter.
    """
    chosen = list(parameters)
    optimizer = torch.optim.AdamW(chosen, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    losses: list[float] = []
    for batch in batches:
        if len(losses) == steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _share(len(losses), steps, warmup_steps)
        value = loss(batch)
        losses.append(value.item())
        if not isfinite(losses[-1]):
            raise NumericalError(f"The loss of step {len(losses)} is {losses[-1]}.", hint="Lower the learning rate.")
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(chosen, largest_norm)
        optimizer.step()
        optimizer.zero_grad()
        if watch is not None:
            watch(len(losses), losses[-1])
    if len(losses) < steps:
        raise OperationError(f"There were {len(losses)} batches, expected {steps}.")
    return losses


def _share(step: int, steps: int, warmup_steps: int) -> float:
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + cos(pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
