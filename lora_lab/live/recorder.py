"""The sum of a weight's gradients over a training, and its spectrum: how low the rank of what is learned is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

import torch

from lora_lab.errors import CompatibilityError, NumericalError, OperationError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


class GradientRecorder:
    """Add up the gradients of full weights while a ``with`` block trains.

    ``total = Σ_t ∂L_t/∂W``. Under plain gradient descent W moves by ``-rate · total``; that this has few large singular
    values is what lets B·A stand in for it. Frozen weights can be recorded too: they get gradients inside the block,
    and are changed by no one.

    Parameters
    ----------
    model : the model that is trained
    weights : names of matrices among its parameters, such as ``model.layers.0.self_attn.q_proj.weight``

    Raises
    ------
    CompatibilityError
        no such parameter, or not a matrix.

    Notes
    -----
    Memory: one float32 matrix for each weight. The sum is no product of thin factors, so :meth:`spectrum` decomposes
    it densely: O(out · in · min(out, in)) time.
    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1; Aghajanyan et al. 2020 (arXiv 2012.13255).

    Examples
    --------
    >>> from torch import nn
    >>> model, x = nn.Linear(5, 4, bias=False), torch.ones(1, 5)
    >>> with GradientRecorder(model, ["weight"]) as recorder:
    ...     _ = model(x).sum().backward()
    >>> int((recorder.spectrum("weight") > 1e-6).sum())  # one example moves a weight by a matrix of rank one
    1
    """

    def __init__(self, model: nn.Module, weights: Sequence[str]) -> None:
        known = dict(model.named_parameters())
        for name in weights:
            if name not in known or known[name].dim() != 2:
                raise CompatibilityError(f"The model has no matrix {quoted(name)} among its parameters.")
        self.weights = {name: known[name] for name in weights}
        self.totals = {
            name: torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            for name, weight in self.weights.items()
        }
        self.backward_passes = dict.fromkeys(weights, 0)
        self.handles: list[RemovableHandle] = []
        self.frozen: list[nn.Parameter] = []

    def __enter__(self) -> Self:
        if self.handles:
            raise OperationError("The recorder is running already.")
        for name, weight in self.weights.items():
            if not weight.requires_grad:
                self.frozen.append(weight)
                weight.requires_grad_()
            self.handles.append(weight.register_hook(partial(self.add, name)))  # type: ignore[no-untyped-call]
        for weight in self.frozen:
            # No optimizer clears what a frozen weight collects.
            self.handles.append(weight.register_post_accumulate_grad_hook(_forget))  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        for weight in self.frozen:
            weight.requires_grad_(False)
        self.handles.clear()
        self.frozen.clear()

    def add(self, name: str, gradient: Tensor) -> None:
        """Add one backward pass's gradient of the weight `name`."""
        self.totals[name] += gradient.detach().to(self.totals[name].dtype)
        self.backward_passes[name] += 1

    def spectrum(self, name: str) -> Tensor:
        """Singular values of the summed gradient of `name`: (min(out, in),) float64, descending.

        Raises
        ------
        NumericalError
            the sum is not finite.
        """
        total = self.totals[name].to(torch.float64)
        if not torch.isfinite(total).all():
            raise NumericalError(f"The summed gradient of {quoted(name)} holds NaN or infinity.")
        singular_values: Tensor = torch.linalg.svdvals(total)
        return singular_values


def _forget(weight: Tensor) -> None:
    weight.grad = None
