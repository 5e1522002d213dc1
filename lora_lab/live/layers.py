"""One layer with LoRA: the frozen base layer, and the factors of any number of adapters beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from lora_lab.errors import CompatibilityError, NumericalError

if TYPE_CHECKING:
    from collections.abc import Iterator

BaseLayer = TypeVar("BaseLayer", nn.Linear, nn.Embedding)


class Factors(nn.Module):
    """What one adapter has learned for one layer.

    ``delta_w = scaling · lora_B @ lora_A``, where the layer maps `in_features` to `out_features`.

    Parameters
    ----------
    lora_A : (r, in_features), float
    lora_B : (out_features, r), float
    scaling : dimensionless
    magnitude : (out_features,) for DoRA; None without
    """

    def __init__(self, lora_A: Tensor, lora_B: Tensor, scaling: float, magnitude: Tensor | None = None) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_B)
        self.magnitude = None if magnitude is None else nn.Parameter(magnitude)
        self.scaling = scaling

    @property
    def rank(self) -> int:
        """Rows of A and columns of B."""
        return self.lora_A.shape[0]

    def product(self) -> Tensor:
        """``lora_B @ lora_A`` (out_features, in_features), in full precision under autocast too."""
        with torch.autocast(self.lora_A.device.type, enabled=False):
            return self.lora_B @ self.lora_A


class LoraLayer(nn.Module, ABC, Generic[BaseLayer]):
    """A base layer that adds the active adapter's contribution to what it computes.

    Parameters
    ----------
    base_layer : the layer as the model had it; its weight is never written to
    """

    base_layer: BaseLayer

    def __init__(self, base_layer: BaseLayer) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.factors = nn.ModuleDict()
        self.active: str | None = None
        # In a list, so that torch does not take the kept weight for a parameter of this module.
        self.kept: list[nn.Parameter] = []
        self.train(base_layer.training)

    @property
    def weight(self) -> nn.Parameter:
        """W0, merged or not: what a model that ties another layer to this one reads."""
        return self.kept[0] if self.kept else cast("nn.Parameter", self.base_layer.weight)

    @property
    def is_merged(self) -> bool:
        """Whether the base layer computes with a merged weight now."""
        return bool(self.kept)

    @property
    def active_factors(self) -> Factors | None:
        """Factors of the active adapter; None where it has none on this layer, or none is active."""
        if self.active is None or self.active not in self.factors:
            return None
        return cast("Factors", self.factors[self.active])

    @abstractmethod
    def features(self) -> tuple[int, int]:
        """``(in_features, out_features)`` of the product B·A."""

    def start(self, rank: int, scaling: float, generator: torch.Generator, *, use_dora: bool) -> Factors:
        """Fresh factors: A ~ N(0, 1/rank²), B = 0, magnitudes those of the base, so that the effect is exactly zero.

        Drawn in float32 on the generator's device, so a seed means the same numbers whatever the model's dtype.
        """
        inside, outside = self.features()
        dtype, device = factor_dtype(self.weight), self.weight.device
        drawn = torch.randn((rank, inside), generator=generator, device=generator.device, dtype=torch.float32) / rank
        factors = Factors(
            drawn.to(device=device, dtype=dtype), torch.zeros((outside, rank), device=device, dtype=dtype), scaling
        )
        if use_dora:
            factors.magnitude = nn.Parameter(self.row_norms(factors))
        return factors

    @abstractmethod
    def delta_w(self, factors: Factors) -> Tensor:
        """``scaling · B·A`` in the orientation of the weight."""

    def row_norms(self, factors: Factors) -> Tensor:
        """``‖W0 + delta_w‖`` of each output row, (out_features,), detached from the gradient.

        Source: Liu et al. 2024 (arXiv 2402.09353), section 4.3: the norm is treated as a constant.
        """
        with torch.no_grad():
            total = self.weight.to(factors.lora_A.dtype) + self.delta_w(factors)
            norms: Tensor = torch.linalg.vector_norm(total, dim=1)
            return norms

    def merged_weight(self, factors: Factors) -> Tensor:
        """The weight that does in one product what base and adapter do together, in the base's dtype.

        ``W0 + delta_w``; for DoRA ``(magnitude / ‖W0 + delta_w‖_row) · (W0 + delta_w)``. Summed in float32 or better
        and rounded once.

        Raises
        ------
        NumericalError
            the result is not finite in the base's dtype.
        """
        base_weight = self.weight
        dtype = torch.promote_types(factor_dtype(base_weight), factors.lora_A.dtype)
        with torch.no_grad():
            total = base_weight.to(dtype) + self.delta_w(factors).to(dtype)
            if factors.magnitude is not None:
                total *= (factors.magnitude / self.row_norms(factors)).to(dtype)[:, None]
            merged = total.to(base_weight.dtype)
        if not torch.isfinite(merged).all():
            raise NumericalError(f"The merged weight holds NaN or infinity in {base_weight.dtype}.")
        return merged

    def put_in(self, merged: Tensor) -> None:
        """Let the base layer compute with `merged`, and keep its own weight, the very object."""
        kept = self.weight
        self.base_layer.weight = nn.Parameter(merged, requires_grad=False)
        self.kept.append(kept)

    def unmerge(self) -> None:
        """Give the base layer its own weight back."""
        if self.kept:
            self.base_layer.weight = self.kept.pop()


class LoraLinear(LoraLayer[nn.Linear]):
    """``h = W0 x + b + scaling · B(A x)``, and for DoRA ``h = b + (m / ‖W0 + ΔW‖_row) · (W0 x + scaling · B(A x))``.

    Source: Hu et al. 2021 (arXiv 2106.09685), equation 3; Liu et al. 2024 (arXiv 2402.09353), equation 5.
    """

    def features(self) -> tuple[int, int]:
        return self.base_layer.in_features, self.base_layer.out_features

    def delta_w(self, factors: Factors) -> Tensor:
        return factors.scaling * factors.product()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features), in the dtype that the base layer answers in."""
        base: Tensor = self.base_layer(x)
        factors = self.active_factors
        if factors is None or self.is_merged:
            return base
        narrow = linear(x.to(factors.lora_A.dtype), factors.lora_A)  # (…, r)
        update = linear(narrow, factors.lora_B) * factors.scaling  # (…, out)
        if factors.magnitude is None:
            return (base + update).to(base.dtype)
        ratio = factors.magnitude / self.row_norms(factors)
        bias = cast("Tensor | None", self.base_layer.bias)
        unbiased = base if bias is None else base - bias
        # As base + change: at the start ratio is 1 and the change exactly 0, bias or not.
        return (base + ((ratio - 1) * unbiased + ratio * update)).to(base.dtype)


class LoraEmbedding(LoraLayer[nn.Embedding]):
    """``h = W0[x] + scaling · Aᵀ[x] Bᵀ``: the weight holds a row for each token, so its update is ``(B·A)ᵀ``."""

    def features(self) -> tuple[int, int]:
        return self.base_layer.num_embeddings, self.base_layer.embedding_dim

    def start(self, rank: int, scaling: float, generator: torch.Generator, *, use_dora: bool) -> Factors:
        if use_dora or self.base_layer.max_norm is not None:
            raise CompatibilityError("DoRA on an embedding, and an embedding with max_norm, are not supported.")
        return super().start(rank, scaling, generator, use_dora=False)

    def delta_w(self, factors: Factors) -> Tensor:
        return factors.scaling * factors.product().T

    def forward(self, x: Tensor) -> Tensor:
        """(…) int to (…, embedding_dim)."""
        base: Tensor = self.base_layer(x)
        factors = self.active_factors
        if factors is None or self.is_merged:
            return base
        narrow = embedding(x, factors.lora_A.T)  # (…, r)
        return (base + linear(narrow, factors.lora_B) * factors.scaling).to(base.dtype)


def wrapped(layer: nn.Module) -> LoraLinear | LoraEmbedding | None:
    """`layer` with room for factors; None where this kind of layer takes none."""
    # Subclasses may compute something else than W0 x, so the very classes only.
    if type(layer) is nn.Linear:
        return LoraLinear(layer)
    if type(layer) is nn.Embedding:
        return LoraEmbedding(layer)
    return None


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear | LoraEmbedding]]:
    """Module paths and wrapped layers of `model`, in its order."""
    for path, module in model.named_modules():
        if isinstance(module, LoraLinear | LoraEmbedding):
            yield path, module


def factor_dtype(weight: Tensor) -> torch.dtype:
    """float32, or the weight's own dtype where that is wider."""
    return torch.promote_types(weight.dtype, torch.float32)
