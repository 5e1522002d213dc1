"""An adapter as PEFT reads it: the two files, with lora_alpha = r everywhere, so that ΔW = lora_B @ lora_A."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.summaries import summarised
from lora_lab.domain.adapter import DeltaKind
from lora_lab.domain.dtypes import DType
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.errors import CompatibilityError, quoted
from lora_lab.formats.peft_keys import NESTED, PREFIX
from lora_lab.operations.execution import raw_bytes
from lora_lab.operations.parameter_files import packed, parameters_among, target_parameters
from lora_lab.storage.layout import Entry, header_bytes, in_aligned_order
from lora_lab.storage.reading import torch_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.progress import Observer
    from lora_lab.operations.combining import Joined
    from lora_lab.operations.saved_modules import Saved
    from lora_lab.storage.staging import StagedFolder

CONFIGURATION: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
# What only says how training began, or which of several targets were meant, and is not true of the result.
_FORGOTTEN: Final = (
    "corda_config", "eva_config", "exclude_modules", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_ga_config", "peft_version", "velora_config", "monteclora_config",
)  # fmt: skip


def configuration_of(
    adapters: Sequence[Adapter], modules: Sequence[Joined], saved: Saved, *, is_whole: bool
) -> dict[str, Any]:
    """The content of ``adapter_config.json``.

    One adapter keeps what it says beyond ranks and targets; of several only what they agree on is kept.

    Parameters
    ----------
    is_whole : whether every module of every adapter is in the result
    """
    parameters = parameters_among(modules, adapters)
    inside = {id(one): path for path, several in parameters.items() for one in several}
    common, others = rank_patterns({inside.get(id(module), module.joint.module): module.rank for module in modules})
    plain = [module for module in modules if id(module) not in inside]
    document: dict[str, Any] = {"peft_type": "LORA"}
    if len(adapters) == 1:
        document |= {key: value for key, value in adapters[0].configuration.items() if key not in _FORGOTTEN}
    return document | {
        "task_type": _agreed(adapters, "task_type"),
        **{key: said for key in ("revision", "auto_mapping") if (said := _agreed(adapters, key))},
        "base_model_name_or_path": _agreed(adapters, "base_model_name_or_path")
        or adapters[0].configuration.get("base_model_name_or_path"),
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "target_modules": _targets(adapters, plain, is_whole=is_whole),
        "target_parameters": target_parameters(parameters, adapters, is_whole=is_whole) or None,
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": any(module.joint.first.fan_in_fan_out for module in modules),
        "lora_bias": any(module.bias is not None for module in modules),
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "trainable_token_indices": None,
        **saved.configuration,
    }


def tensors_of(adapters: Sequence[Adapter], modules: Sequence[Joined], saved: Saved) -> dict[str, torch.Tensor]:
    """Every tensor of the file under its name.

    Raises
    ------
    CompatibilityError
        a module has factors and is brought whole, of which PEFT would load one.
    """
    both = [module.joint.module for module in modules if _is_within(module.joint.module, saved.replaced)]
    if both:
        raise CompatibilityError(
            f"{summarised(map(quoted, both))}: one adapter brings the module whole, or rows of it, and another has "
            "factors of it; PEFT loads one of the two.",
            hint="--skip-saved-modules leaves out what is whole, --module GLOB says whose factors are taken.",
        )
    parameters = parameters_among(modules, adapters)
    inside = {id(one) for several in parameters.values() for one in several}
    tensors = packed(parameters, adapters)
    targeted = {module.joint.module for module in modules}
    for name, tensor in saved.tensors.items():
        layer = saved.layers.get(name)
        head, _, leaf = name.rpartition(".")
        tensors[f"{head}{NESTED}.{leaf}" if layer in targeted else name] = tensor
    for module in modules:
        if id(module) in inside:
            continue
        delta, lora_A, lora_B = module.joint.first, module.lora_A, module.lora_B
        path = f"{PREFIX}{delta.module}"
        if delta.kind is DeltaKind.EMBEDDING:
            tensors[f"{path}.lora_embedding_A"], tensors[f"{path}.lora_embedding_B"] = lora_A, lora_B
            continue
        if delta.kind is DeltaKind.CONV:
            lora_A = lora_A.reshape(module.rank, *delta.shape[1:])
            lora_B = lora_B.reshape(*lora_B.shape, *(1 for _ in delta.shape[2:]))
        tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = lora_A, lora_B
        if module.bias is not None:
            tensors[f"{path}.lora_B.bias"] = module.bias
    return tensors


class AdapterFiles:
    """The two files, laid out and not yet written.

    Parameters
    ----------
    configuration : of ``adapter_config.json``
    tensors : of ``adapter_model.safetensors``
    """

    def __init__(self, configuration: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        self._text = (json.dumps(configuration, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()
        self._tensors = tensors
        self._entries = in_aligned_order(
            Entry(name, _dtype(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()
        )
        self._header = header_bytes(self._entries, {"format": "pt"})

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        data = sum(entry.size_bytes for entry in self._entries)
        return {CONFIGURATION: len(self._text), WEIGHTS: len(self._header) + data}

    def write(self, staged: StagedFolder, observer: Observer) -> None:
        """Write both; the same tensors give the same bytes.

        Raises
        ------
        OperationError
            the disk says no.
        CancelledError
            the observer no longer wants it.
        """
        sizes = self.sizes
        with staged.file(CONFIGURATION, sizes[CONFIGURATION]) as file:
            file.write(self._text)
        with staged.file(WEIGHTS, sizes[WEIGHTS]) as file:
            file.write(self._header)
            for entry in self._entries:
                stop_if_cancelled(observer)
                if entry.size_bytes:
                    file.write(raw_bytes(self._tensors[entry.name]))


def _is_within(module: str, places: Sequence[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def rank_patterns(ranks: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """The commonest of the ranks of some modules, and the others by module.

    PEFT takes a key of the pattern for the end of a name too; where one module's name is the end of another's, its key
    says that it is the whole.
    """
    counts = Counter(ranks.values())
    common = max(counts, key=lambda rank: (counts[rank], rank))
    ends = {path[at + 1 :] for path in ranks for at, sign in enumerate(path) if sign == "."}
    others = {f"^{re.escape(path)}" if path in ends else path: rank for path, rank in ranks.items() if rank != common}
    return common, others


def _targets(adapters: Sequence[Adapter], modules: Sequence[Joined], *, is_whole: bool) -> list[str]:
    """Those that the adapters name, where together they mean the modules that are there; else every module."""
    named = []
    for adapter in adapters:
        document = adapter.configuration
        targets = document.get("target_modules")
        if targets is None and document.get("target_parameters"):
            targets = []
        if not isinstance(targets, list) or any(
            document.get(key) for key in ("exclude_modules", "layers_to_transform")
        ):
            is_whole = False
            break
        named += [target for target in targets if target not in named]
    return sorted(named) if is_whole else [module.joint.module for module in modules]


def _agreed(adapters: Sequence[Adapter], key: str) -> Any:
    """What all of them say; None where they differ."""
    values = [adapter.configuration.get(key) for adapter in adapters]
    return values[0] if all(value == values[0] for value in values) else None


def _dtype(tensor: torch.Tensor) -> DType:
    return next(dtype for dtype in DType if torch_dtype(dtype) == tensor.dtype)
