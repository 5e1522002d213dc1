"""The base and the fine-tune as files that transformers loads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from model import Decoder, Shape
from safetensors.torch import load_file
from tokenizer import BOS, EOS, PAD, Tokenizer

from lora_lab.storage.atomic import write_json
from lora_lab.storage.safetensors_writer import write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def save_tokenizer(tokenizer: Tokenizer, folder: Path, longest: int) -> None:
    """Write ``tokenizer.json`` and the settings that make AutoTokenizer take it as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", tokenizer.to_json(), overwrite=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings, overwrite=True)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that :func:`save_tokenizer` wrote."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return Tokenizer([(left, right) for left, right in document["model"]["merges"]])


def save_model(model: Decoder, folder: Path, *, shards: int) -> None:
    """Write weights in bfloat16, rounded once, and ``config.json``; several shards come with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    total = sum(tensor.nbytes for tensor in tensors.values())
    parts: list[dict[str, Tensor]] = [{} for _ in range(shards)]
    written = 0
    for name, tensor in tensors.items():
        parts[min(shards - 1, written * shards // total)][name] = tensor
        written += tensor.nbytes
    names = [SINGLE] if shards == 1 else [f"model-{n:05}-of-{shards:05}.safetensors" for n in range(1, shards + 1)]
    for name, part in zip(names, parts, strict=True):
        write_safetensors(folder / name, part, {"format": "pt"}, overwrite=True)
    if shards > 1:
        place = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in sorted(part)}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": place}, overwrite=True)
    write_json(folder / "config.json", model.shape.config(), overwrite=True)


def load_model(folder: Path, shape: Shape) -> Decoder:
    """The stored model in float32: exactly the values of the bfloat16 files, so training starts from what is stored."""
    names = {SINGLE}
    if (folder / INDEX).exists():
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    tensors = {key: tensor.float() for name in sorted(names) for key, tensor in load_file(folder / name).items()}
    model = Decoder(shape, torch.Generator().manual_seed(0))
    model.load_state_dict(tensors)
    return model.eval()
