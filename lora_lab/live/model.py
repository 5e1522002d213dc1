"""Any number of named adapters on one frozen model."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn

from lora_lab.errors import AdapterError, CompatibilityError, OperationError, quoted
from lora_lab.live.layers import Factors, LoraEmbedding, LoraLayer, LoraLinear, lora_layers, wrapped

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_lab.live.config import LoraConfig


class LoraModel:
    """A model with adapters attached in place: `model` itself computes with the active one.

    All of the model's own parameters are frozen until :meth:`detach`.

    Parameters
    ----------
    model : any torch model; its linear and embedding layers can be targets

    Examples
    --------
    >>> import torch
    >>> from lora_lab.live import LoraConfig
    >>> model, x = nn.Sequential(nn.Linear(6, 4)), torch.ones(1, 6)
    >>> before = model(x)
    >>> lora = LoraModel(model)
    >>> lora.attach("task", LoraConfig(["0"], rank=2), generator=torch.Generator().manual_seed(0))
    ('0',)
    >>> torch.equal(model(x), before), lora.parameter_count("task")
    (True, 20)
    """

    def __init__(self, model: nn.Module) -> None:
        if next(lora_layers(model), None) is not None:
            raise OperationError("The model carries adapters of another LoraModel already.", hint="Detach that first.")
        self.model = model
        self.configs: dict[str, LoraConfig] = {}
        self.active: str | None = None
        self.was_trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        for parameter, _ in self.was_trainable:
            parameter.requires_grad_(False)

    @property
    def is_merged(self) -> bool:
        """Whether the active adapter is merged into the weights."""
        return any(layer.is_merged for _, layer in lora_layers(self.model))

    def attach(self, name: str, config: LoraConfig, *, generator: torch.Generator) -> tuple[str, ...]:
        """Give every target a fresh pair of factors, make the adapter active, and return the modules' paths.

        Before training, the model computes exactly what it computed without the adapter.

        Raises
        ------
        CompatibilityError
            no module is a target, or one is of a kind that takes no factors.
        AdapterError, OperationError
            the name is taken or has a dot or a slash in it; another adapter is merged.
        """
        modules = self.targets(config)
        self.require_free(name)
        fresh = {}
        for module in modules:
            rank, scaling = config.rank_of(module), config.scaling_of(module)
            fresh[module] = self.layer(module).start(rank, scaling, generator, use_dora=config.use_dora)
        self.put(name, config, fresh)
        return modules

    def targets(self, config: LoraConfig) -> tuple[str, ...]:
        """Paths of the modules that `config` targets, in the model's order.

        Raises
        ------
        CompatibilityError
            none, or one of a kind that takes no factors.
        """
        inner = tuple(f"{path}." for path, _ in lora_layers(self.model))
        found = []
        for path, module in self.model.named_modules():
            if path and not path.startswith(inner) and config.targets(path):
                if not isinstance(module, LoraLayer) and type(module) not in (nn.Linear, nn.Embedding):
                    raise CompatibilityError(
                        f"The target {quoted(path)} is a {type(module).__name__}, expected Linear or Embedding.",
                        hint="Name the layers inside it, or exclude it.",
                    )
                found.append(path)
        if not found:
            raise CompatibilityError(f"No module of the model is a target of {quoted(config.target_modules)}.")
        return tuple(found)

    def require_free(self, name: str) -> None:
        """Refuse a name that is taken or cannot be one, and any change while an adapter is merged."""
        if not name or "." in name or "/" in name:
            raise AdapterError(f"{quoted(name)} cannot be an adapter's name: it is empty, or has a dot or slash in it.")
        if name in self.configs:
            raise AdapterError(
                f"An adapter {quoted(name)} is attached already.", hint="Remove it, or take another name."
            )
        self.require_unmerged()

    def require_unmerged(self) -> None:
        """Refuse to go on while an adapter is merged."""
        if self.is_merged:
            raise OperationError(f"The adapter {quoted(self.active)} is merged.", hint="Unmerge it first.")

    def layer(self, module: str) -> LoraLinear | LoraEmbedding:
        """The layer at `module` with room for factors; the model computes with it once :meth:`put` has put it in."""
        layer = self.model.get_submodule(module)
        if isinstance(layer, LoraLinear | LoraEmbedding):
            return layer
        ready = wrapped(layer)
        if ready is None:
            raise CompatibilityError(f"{quoted(module)} is a {type(layer).__name__}, expected Linear or Embedding.")
        return ready

    def put(self, name: str, config: LoraConfig, factors: Mapping[str, Factors]) -> None:
        """Hold ready-made factors as the adapter `name`, and make it active."""
        for module, pair in factors.items():
            layer = self.layer(module)
            layer.factors[name] = pair
            self.model.set_submodule(module, layer)
        self.configs[name] = config
        self.switch(name)

    def factors(self, name: str) -> dict[str, Factors]:
        """Module path to factors of the adapter `name`, in the model's order."""
        self.require_known(name)
        return {
            path: cast("Factors", layer.factors[name])
            for path, layer in lora_layers(self.model)
            if name in layer.factors
        }

    def parameters(self, name: str) -> list[nn.Parameter]:
        """What training the adapter `name` changes."""
        return [parameter for pair in self.factors(name).values() for parameter in pair.parameters()]

    def parameter_count(self, name: str) -> int:
        """Numbers in the adapter `name`: ``Σ r·(in + out)``, and ``out`` more for each DoRA layer."""
        return sum(parameter.numel() for parameter in self.parameters(name))

    def switch(self, name: str | None) -> None:
        """Make the adapter `name` the active one, the only one that gradients reach; None leaves the base alone."""
        if name is not None:
            self.require_known(name)
        self.require_unmerged()
        self.active = name
        for _, layer in lora_layers(self.model):
            layer.active = name
            for held, pair in layer.factors.items():
                pair.requires_grad_(requires_grad=held == name)

    def merge(self) -> None:
        """Compute with ``W0 + delta_w`` in place of W0; the base's own weights are kept aside, not changed.

        Costs one weight more in memory for each target. A weight tied to a target's elsewhere in the model keeps its
        own value, as it does while the adapter is not merged.

        Raises
        ------
        OperationError
            no adapter is active, or one is merged already.
        NumericalError
            a merged weight is not finite; nothing is merged then.
        """
        self.require_unmerged()
        if self.active is None:
            raise OperationError("No adapter is active, so there is nothing to merge.", hint="Switch to one first.")
        # All are computed before any is put in, so that a failure leaves the model as it was.
        ready = [
            (layer, layer.merged_weight(pair))
            for _, layer in lora_layers(self.model)
            if (pair := layer.active_factors) is not None
        ]
        for layer, merged in ready:
            layer.put_in(merged)

    def unmerge(self) -> None:
        """Give every layer the weight object back that it had before :meth:`merge`: bit for bit the base."""
        if not self.is_merged:
            raise OperationError("No adapter is merged.")
        for _, layer in lora_layers(self.model):
            layer.unmerge()

    def remove(self, name: str) -> None:
        """Drop the adapter `name`; where it was active, none is afterwards."""
        self.require_known(name)
        self.require_unmerged()
        for _, layer in lora_layers(self.model):
            if name in layer.factors:
                del layer.factors[name]
        del self.configs[name]
        self.switch(None if self.active == name else self.active)

    def detach(self, *, keep_merged: bool = False) -> nn.Module:
        """Take every adapter off and return the model with its own layers; `keep_merged` leaves merged weights in."""
        for path, layer in list(lora_layers(self.model)):
            if not keep_merged:
                layer.unmerge()
            self.model.set_submodule(path, layer.base_layer)
        for parameter, flag in self.was_trainable:
            parameter.requires_grad_(flag)
        self.configs.clear()
        self.active = None
        return self.model

    def require_known(self, name: str) -> None:
        """Refuse a name that no adapter has."""
        if name not in self.configs:
            known = ", ".join(self.configs) or "none"
            raise AdapterError(f"No adapter {quoted(name)} is attached; there are: {known}.")
