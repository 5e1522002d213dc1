"""An adapter as files in PEFT's layout: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from safetensors.torch import load_file

from lora_lab.errors import AdapterError, CompatibilityError, OperationError, quoted
from lora_lab.live.config import LoraConfig
from lora_lab.live.layers import Factors, LoraEmbedding, factor_dtype
from lora_lab.storage.atomic import write_json
from lora_lab.storage.files import read_json
from lora_lab.storage.header import read_header
from lora_lab.storage.safetensors_writer import write_safetensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lora_lab.live.model import LoraModel

CONFIG: Final = "adapter_config.json"
TENSORS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
_LINEAR: Final = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_magnitude_vector": "magnitude"}
_EMBEDDING: Final = {"lora_embedding_A": "A", "lora_embedding_B": "B"}
_ROLES: Final = {**_LINEAR, **_EMBEDDING}


def save_adapter(
    lora: LoraModel, name: str, folder: str | Path, *, dtype: torch.dtype | None = None, overwrite: bool = False
) -> None:
    """Write the adapter `name` so that PEFT loads it.

    Parameters
    ----------
    folder : made where it is missing
    dtype : what the tensors are stored in; as they are in memory where None
    overwrite : whether an adapter already there is replaced

    Raises
    ------
    OperationError
        `folder` holds an adapter already and `overwrite` is false.
    """
    tensors: dict[str, Tensor] = {}
    for module, factors in lora.factors(name).items():
        is_embedding = isinstance(lora.layer(module), LoraEmbedding)
        key = {role: tail for tail, role in (_EMBEDDING if is_embedding else _LINEAR).items()}
        held = {"A": factors.lora_A, "B": factors.lora_B, "magnitude": factors.magnitude}
        for role, tensor in held.items():
            if tensor is not None:
                tensors[f"{PREFIX}{module}.{key[role]}"] = tensor.detach().to(dtype or tensor.dtype)
    home = Path(folder)
    if not overwrite and ((home / CONFIG).exists() or (home / TENSORS).exists()):
        raise OperationError(f"{quoted(home)} holds an adapter already.", hint="Choose another folder, or overwrite.")
    home.mkdir(parents=True, exist_ok=True)
    # The configuration comes last: a folder without one is no adapter, so half an adapter is none.
    write_safetensors(home / TENSORS, tensors, {"format": "pt"}, overwrite=overwrite)
    write_json(home / CONFIG, lora.configs[name].to_peft(), overwrite=overwrite)


def load_adapter(lora: LoraModel, name: str, folder: str | Path) -> tuple[str, ...]:
    """Attach an adapter that PEFT or :func:`save_adapter` wrote as `name`, make it active, and return its modules.

    Every tensor of the file must have a place, every target of the configuration a pair, and every shape must fit;
    otherwise nothing is attached.

    Raises
    ------
    AdapterError
        the configuration asks for what a live adapter does not honour, a pair is incomplete, a rank differs.
    CompatibilityError
        a module is missing in the model, or a shape does not fit it.
    FileFormatError
        one of the two files is missing or broken.
    """
    home = Path(folder)
    config = LoraConfig.from_peft(read_json(home / CONFIG))
    read_header(home / TENSORS)  # bounded and checked, before anything is mapped
    found: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in load_file(home / TENSORS).items():
        module, role = _place(key)
        found[module][role] = tensor
    targets = lora.targets(config)
    if surplus := sorted(set(found) - set(targets)):
        raise CompatibilityError(f"The file holds factors for {quoted(surplus[0])}, no target of it in this model.")
    lora.require_free(name)
    lora.put(name, config, {module: _factors(lora, config, module, found.get(module, {})) for module in targets})
    return targets


def _place(key: str) -> tuple[str, str]:
    for tail, role in _ROLES.items():
        if key.endswith(f".{tail}"):
            return key.removeprefix(PREFIX).removesuffix(f".{tail}"), role
    raise AdapterError(f"The file holds a tensor {quoted(key)} that a live adapter has no place for.")


def _factors(lora: LoraModel, config: LoraConfig, module: str, held: dict[str, Tensor]) -> Factors:
    wanted = {"A", "B", "magnitude"} if config.use_dora else {"A", "B"}
    if set(held) != wanted:
        raise AdapterError(
            f"The module {quoted(module)} has the tensors {sorted(held)} in the file, expected {sorted(wanted)}."
        )
    layer = lora.layer(module)
    (inside, outside), rank = layer.features(), config.rank_of(module)
    for role, shape in {"A": (rank, inside), "B": (outside, rank), "magnitude": (outside,)}.items():
        if role in held and tuple(held[role].shape) != shape:
            raise CompatibilityError(
                f"{role} of the module {quoted(module)} has the shape {tuple(held[role].shape)}, expected {shape}."
            )
    ready = {
        role: tensor.to(device=layer.weight.device, dtype=factor_dtype(layer.weight)) for role, tensor in held.items()
    }
    return Factors(ready["A"], ready["B"], config.scaling_of(module), ready.get("magnitude"))
