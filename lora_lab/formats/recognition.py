"""Which format a file of low-rank factors is in, told by tensor names and header keys alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

PEFT: Final = "peft"

_SAM: Final = re.compile(r"^w_[ab]_[0-9]+$", re.MULTILINE)
_PEFT_NAME: Final = re.compile(
    r"\.lora_(?:A|B)\.(?:[^\n]+\.)?weight$|\.lora_embedding_[AB](?:\.[^.\n]+)?$", re.MULTILINE
)
_DIFFUSERS_PREFIX: Final = re.compile(
    r"^(?:transformer|transformer_2|unet|prior|text_encoder(?:_[0-9])?|diffusion_model)\.", re.MULTILINE
)
_LYCORIS: Final = re.compile(
    r"\.(?:lora_mid\.weight|oft_(?:blocks|diag)|w_norm|b_norm|diff|diff_b|on_input|[ab][12]\.weight|bm\.weight)$"
    r"|^lycoris_",
    re.MULTILINE,
)
_CONTROL: Final = re.compile(r"^(?:input_blocks|time_embed|middle_block)\.[^\n]*\.(?:up|down)$", re.MULTILINE)
_MLX: Final = re.compile(r"\.lora_[ab]$", re.MULTILINE)
_LORALIB: Final = re.compile(r"(?:^|\.)lora_[AB]$", re.MULTILINE)
_TORCHTUNE: Final = re.compile(r"\.lora_[ab]\.weight$|\.lora_(?:gate|up|down)_[ab]$", re.MULTILINE)
_CLONEOFSIMO: Final = re.compile(r"^(?:unet|text_encoder)[^\n]*:[0-9]+:(?:up|down)$", re.MULTILINE)


def _has(*marks: str) -> Callable[[str], bool]:
    return lambda blob: any(mark in blob for mark in marks)


def _finds(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda blob: pattern.search(blob) is not None


def _is_xlabs(blob: str) -> bool:
    return ".processor." in blob and ("_lora1." in blob or "_lora2." in blob or "_lora." in blob) and "_blocks." in blob


# The first that fits names the format: the more telling a name is, the earlier it stands.
_RULES: Final[tuple[tuple[str, Callable[[str], bool]], ...]] = (
    ("loha", _has(".hada_w1_a", ".hada_w2_a")),
    ("lokr", _has(".lokr_w1", ".lokr_w2")),
    ("cloneofsimo", _finds(_CLONEOFSIMO)),
    ("sam_lora", _finds(_SAM)),
    ("lycoris", _finds(_LYCORIS)),
    ("control_lora", lambda blob: "lora_controlnet" in blob or _CONTROL.search(blob) is not None),
    ("kohya", _has(".lora_down.weight", ".lora_up.weight")),
    ("xlabs", _is_xlabs),
    ("diffusers", _has(".lora_linear_layer.", "_lora.down.weight", "_lora.up.weight")),
    ("torchtune", _finds(_TORCHTUNE)),
    ("mlx", _finds(_MLX)),
    ("loralib", _finds(_LORALIB)),
)


def identify_names(names: Iterable[str], metadata: Mapping[str, str]) -> str:
    """Id of the format that writes such tensor names; empty when none of them is of a low-rank factor.

    Examples
    --------
    >>> identify_names(["model.layers.0.self_attn.q_proj.lora_a"], {})
    'mlx'
    >>> identify_names(["model.layers.0.self_attn.q_proj.weight"], {})
    ''
    """
    blob = "\n".join(names)
    if _PEFT_NAME.search(blob):
        if "lora_adapter_metadata" in metadata or _DIFFUSERS_PREFIX.search(blob):
            return "diffusers"
        return "flux_control" if re.search(r"^(?:double|single)_blocks\.", blob, re.MULTILINE) else PEFT
    return next((name for name, fits in _RULES if fits(blob)), "")


def is_mlx_configuration(start: bytes) -> bool:
    """Whether the start of an ``adapter_config.json`` is that of MLX, which uses the same file name as PEFT."""
    return b'"peft_type"' not in start and (b'"fine_tune_type"' in start or b'"lora_parameters"' in start)
