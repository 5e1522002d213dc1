"""The block of a model as its config.json describes it: widths and heads, or a refusal that names what is not known."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from lora_lab.benchmarks.latency.blocks import BlockShape
from lora_lab.domain.architectures import architecture_of
from lora_lab.domain.decoders import DECODERS
from lora_lab.domain.dtypes import DType
from lora_lab.domain.sheet import Sheet, Weight, WeightKind
from lora_lab.errors import CompatibilityError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.base import Base

# Which parts a block's matrices are, by the last part of their names in every family.
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "q": ("q_proj",),
    "k": ("k_proj",),
    "qkv": ("c_attn", "query_key_value", "qkv_proj"),
    "gate": ("gate_proj",),
    "gate_up": ("gate_up_proj",),
    "up": ("up_proj", "fc1", "fc_in", "c_fc", "dense_h_to_4h"),
}
_COMPUTED: Final = {DType.F32: "float32", DType.F16: "float16", DType.BF16: "bfloat16"}
_HINT: Final = "Without --base the shapes of GPT-2 medium are measured."


def block_shape_of(base: Base) -> tuple[BlockShape, int]:
    """Sizes of one decoder block of `base`, and how many blocks it has.

    Raises
    ------
    CompatibilityError
        there is no configuration, or its blocks are no plain decoder blocks, or a size does not follow from it.
    """
    if not base.configuration:
        raise CompatibilityError(
            f"{quoted(base.name)} has no config.json, so that the number of its heads is not known.", hint=_HINT
        )
    family = base.configuration.get("model_type")
    if family not in DECODERS:
        raise CompatibilityError(
            f"{quoted(base.name)} has the model_type {quoted(family)}, expected a decoder: {', '.join(DECODERS)}.",
            hint=_HINT,
        )
    try:
        weights = architecture_of(base.configuration, name=base.name).weights
    except CompatibilityError as error:
        raise CompatibilityError(error.message, hint=_HINT) from error
    if any(weight.kind is WeightKind.EXPERTS for weight in weights):
        raise CompatibilityError(
            f"{quoted(base.name)} is a mixture of experts, expected blocks with one feed-forward each: how long its "
            "experts take depends on the tokens.",
            hint=_HINT,
        )
    layers = _layers(weights)
    if not layers:
        raise CompatibilityError(f"{quoted(base.name)} has no blocks, expected at least one.", hint=_HINT)
    return _shape(Sheet(base.configuration), layers[0], base.name), len(layers)


def dtype_of(base: Base) -> str:
    """Type in which most of the base's numbers are stored, else the one that its configuration says.

    Raises
    ------
    CompatibilityError
        layers do not compute in that type, or there is none.
    """
    sizes: Counter[DType] = Counter()
    for ref in base.tensors.values():
        sizes[ref.dtype] += ref.elements
    if sizes:
        stored = max(sizes, key=lambda dtype: sizes[dtype])
        if stored in _COMPUTED:
            return _COMPUTED[stored]
        said: object = stored.value
    else:
        said = base.configuration.get("dtype", base.configuration.get("torch_dtype"))
        if isinstance(said, str) and said.removeprefix("torch.") in _COMPUTED.values():
            return said.removeprefix("torch.")
    raise CompatibilityError(
        f"The dtype of {quoted(base.name)} is {quoted(said) if said else 'not said'}, expected one of: "
        f"{', '.join(_COMPUTED.values())}.",
        hint="Say in which one to measure: --dtype bfloat16",
    )


def _layers(weights: Sequence[Weight]) -> list[dict[str, Weight]]:
    """Matrices of every block by the last part of their module's path; a block is what stands before a number."""
    found: dict[str, dict[str, Weight]] = {}
    for weight in weights:
        parts = weight.module.split(".")
        place = next((at for at, part in enumerate(parts) if part.isdigit()), None)
        if place is not None and weight.kind in (WeightKind.LINEAR, WeightKind.CONV1D):
            found.setdefault(".".join(parts[: place + 1]), {})[parts[-1]] = weight
    return list(found.values())


def _shape(sheet: Sheet, matrices: Mapping[str, Weight], name: str) -> BlockShape:
    sides = {part: weight.sides for part, names in _PARTS.items() for last, weight in matrices.items() if last in names}
    default = 12 if sheet.text("model_type") == "gpt2" else None  # transformers' own, as of its other settings
    heads = sheet.number("num_attention_heads", "n_head", "num_heads", default=default)
    hidden = sides["q" if "q" in sides else "qkv"][1]
    if "q" in sides:
        head_dim, rest = divmod(sides["q"][0], heads)
        kv_heads, kv_rest = divmod(sides["k"][0], head_dim or 1)
    else:
        head_dim, rest = divmod(hidden, heads)
        if sheet.value("head_dim") is not None:
            head_dim, rest = sheet.number("head_dim"), 0
        both, kv_rest = divmod(sides["qkv"][0] - heads * head_dim, 2 * max(1, head_dim))
        kv_heads = both
    if rest or kv_rest or not head_dim or not kv_heads or heads % kv_heads:
        raise CompatibilityError(
            f"The heads of {quoted(name)} do not divide its attention: {heads} heads, matrices of "
            f"{', '.join(f'{one[0]}×{one[1]}' for one in sides.values())}.",
            hint=_HINT,
        )
    is_gated = "gate" in sides or "gate_up" in sides
    inner = sides["gate_up"][0] // 2 if "gate_up" in sides else sides["up"][0]
    return BlockShape(hidden, heads, kv_heads, head_dim, inner, is_gated=is_gated, has_bias=not is_gated)
