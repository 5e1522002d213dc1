"""The independent reference: the dense product in NumPy's float64 and its SVD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

Factors = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture
def dense() -> Callable[..., np.ndarray]:
    """scaling·B·A of two tensors of any type."""

    def product(lora_A: torch.Tensor, lora_B: torch.Tensor, scaling: float = 1.0) -> np.ndarray:
        return scaling * (lora_B.to(torch.float64).numpy() @ lora_A.to(torch.float64).numpy())

    return product


@pytest.fixture
def random_factors() -> Callable[..., Factors]:
    """Seeded Gaussian factors (lora_A, lora_B) with singular values that spread over two orders of magnitude."""

    def make(rank: int, inputs: int, outputs: int, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Factors:
        generator = torch.Generator().manual_seed(seed)
        spread = torch.logspace(0, -2, rank, dtype=torch.float64)
        lora_A = torch.randn(rank, inputs, generator=generator, dtype=torch.float64)
        lora_B = torch.randn(outputs, rank, generator=generator, dtype=torch.float64) * spread
        return lora_A.to(dtype), lora_B.to(dtype)

    return make
