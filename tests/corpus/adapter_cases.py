"""Adapters whose files are sound and whose meaning is not: row C of the list of reading cases.

Each case writes an adapter into an empty folder. ``fragment`` is part of the one sentence of a refusal; ``finding`` is
the code of what is told about an adapter that is read all the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from builders import factors, write_adapter
from safetensors.torch import save_file

FIRST = "base_model.model.model.layers.2.self_attn.q_proj"
Build = Callable[[Path], object]


@dataclass(frozen=True)
class AdapterCase:
    """One adapter folder and what reading it gives."""

    id: str
    number: int
    build: Build
    fragment: str = ""
    finding: str = ""


def config(**settings: Any) -> Build:
    """A good file under a configuration with these settings."""
    return lambda folder: write_adapter(folder, **settings)


def without(setting: str) -> Build:
    """A configuration that lacks a setting."""

    def build(folder: Path) -> None:
        write_adapter(folder)
        path = folder / "adapter_config.json"
        document = json.loads(path.read_text())
        del document[setting]
        path.write_text(json.dumps(document))

    return build


def raw_config(content: bytes) -> Build:
    """A good file under a configuration of these bytes."""

    def build(folder: Path) -> None:
        write_adapter(folder)
        (folder / "adapter_config.json").write_bytes(content)

    return build


def tensors(change: Callable[[dict[str, torch.Tensor]], object], **settings: Any) -> Build:
    """A good configuration over changed tensors."""

    def build(folder: Path) -> None:
        content = factors()
        change(content)
        write_adapter(folder, content, **settings)

    return build


def no_weights(folder: Path) -> None:
    write_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()


def no_config(folder: Path) -> None:
    write_adapter(folder)
    (folder / "adapter_config.json").unlink()


def a_pickle(folder: Path) -> None:
    write_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(factors(), folder / "adapter_model.bin")


def both_kinds(folder: Path) -> None:
    write_adapter(folder)
    torch.save(factors(), folder / "adapter_model.bin")


def nothing_inside(folder: Path) -> None:
    write_adapter(folder)
    save_file({}, folder / "adapter_model.safetensors")


def no_lora(folder: Path) -> None:
    write_adapter(folder, {"model.layers.0.weight": torch.zeros(2, 2)})


def replaced(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda content: content.__setitem__(name, value)


HALF = torch.ones(4, 16).half()
DEEP = b'{"peft_type": "LORA", "r": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
CASES = (
    AdapterCase("a_without_b", 43, tensors(lambda c: c.pop(f"{FIRST}.lora_B.weight")), "lora_B"),
    AdapterCase("b_without_a", 43, tensors(lambda c: c.pop(f"{FIRST}.lora_A.weight")), "lora_A"),
    AdapterCase("ranks_differ", 44, tensors(replaced(f"{FIRST}.lora_B.weight", torch.ones(24, 3))), "rank"),
    AdapterCase("config_rank_differs", 45, config(r=5), "rank"),
    *(AdapterCase(f"rank_{value}", 47, config(r=value), "r ") for value in (0, -4, "4", 4.5, True, 10**9, None)),
    AdapterCase("no_alpha", 48, without("lora_alpha"), "lora_alpha"),
    *(AdapterCase(f"alpha_{value}", 49, config(lora_alpha=value), "lora_alpha") for value in ("16", [16], True)),
    AdapterCase("alpha_huge", 49, raw_config(b'{"peft_type": "LORA", "r": 4, "lora_alpha": 1e999}'), "adapter_config"),
    AdapterCase("alpha_nan", 49, raw_config(b'{"peft_type": "LORA", "r": 4, "lora_alpha": NaN}'), "NaN"),
    AdapterCase("alpha_zero", 50, config(lora_alpha=0), finding="zero_alpha"),
    AdapterCase("alpha_negative", 50, config(lora_alpha=-8), finding="negative_alpha"),
    AdapterCase("type_unknown", 53, config(peft_type="EVIL"), "EVIL"),
    AdapterCase("type_other", 53, config(peft_type="IA3"), "IA3"),
    AdapterCase("type_list", 53, config(peft_type=["LORA"]), "peft_type"),
    AdapterCase("type_missing", 53, without("peft_type"), "peft_type"),
    AdapterCase("unknown_key", 54, config(gain_of_mine=3), finding="unknown_key"),
    AdapterCase("dora_without_magnitude", 55, config(use_dora=True), "magnitude"),
    AdapterCase("saved_modules_absent", 55, config(modules_to_save=["classifier"]), "modules_to_save"),
    AdapterCase("bias_absent", 55, config(bias="all"), "bias"),
    AdapterCase("two_spellings", 56, tensors(replaced(f"{FIRST}.lora_A.default.weight", torch.ones(4, 16))), "lora_A"),
    AdapterCase(
        "mixed_dtypes",
        57,
        tensors(replaced(f"{FIRST}.lora_A.weight", HALF)),
        finding="mixed_dtypes",
    ),
    AdapterCase("int8", 58, tensors(replaced(f"{FIRST}.lora_A.weight", torch.ones(4, 16).to(torch.int8))), "I8"),
    AdapterCase(
        "complex", 58, tensors(replaced(f"{FIRST}.lora_A.weight", torch.ones(4, 16).to(torch.complex64))), "C64"
    ),
    AdapterCase("pattern_bomb", 61, config(rank_pattern={"(.|.)*[!?]": 2}), "pattern"),
    AdapterCase("pattern_broken", 61, config(rank_pattern={"(": 2}), "regular expression"),
    AdapterCase("pattern_value", 61, config(rank_pattern={"q_proj": "4"}), "rank_pattern"),
    AdapterCase("pattern_list", 61, config(alpha_pattern=[1]), "alpha_pattern"),
    AdapterCase("code_named", 63, config(auto_map={"AutoModel": "evil.Model"}), finding="code_ignored"),
    AdapterCase("config_empty", 62, raw_config(b""), "empty"),
    AdapterCase("config_list", 62, raw_config(b"[]"), "adapter_config"),
    AdapterCase("config_latin", 62, raw_config(b'{"r": "\xff"}'), "UTF-8"),
    AdapterCase("config_cut", 62, raw_config(b'{"r": 4'), "JSON"),
    AdapterCase("config_twice", 62, raw_config(b'{"r": 4, "r": 8, "peft_type": "LORA"}'), "'r'"),
    AdapterCase("config_digits", 62, raw_config(b'{"r": ' + b"9" * 5000 + b"}"), "adapter_config"),
    AdapterCase("config_deep", 62, raw_config(DEEP), "adapter_config"),
    AdapterCase("config_large", 62, raw_config(b" " * (2 << 20)), "limit"),
    AdapterCase("weights_missing", 65, no_weights, "no weights"),
    AdapterCase("config_missing", 65, no_config, "adapter_config.json"),
    AdapterCase("no_tensors", 36, nothing_inside, "no tensors"),
    AdapterCase("no_lora", 36, no_lora, "LoRA"),
    AdapterCase("both_kinds", 67, both_kinds, finding="pickle_ignored"),
    AdapterCase("pickle", 68, a_pickle, "pickle"),
)
