"""What a family of models writes its weights on: names, shapes and kinds, from settings that are checked.

Nothing is loaded and nothing is guessed: a setting that is missing or out of range is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import TYPE_CHECKING, Any, Final

from lora_lab.errors import CompatibilityError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

_WEIGHT: Final = ".weight"
# No model has more, and a number from a file must not decide how much memory is taken.
_MOST_LAYERS: Final = 4096
_LARGEST: Final = 1 << 40


class WeightKind(StrEnum):
    """What a weight is to the module that holds it."""

    LINEAR = "linear"  # (out, in)
    CONV1D = "conv1d"  # (in, out), as GPT-2 stores it
    EMBEDDING = "embedding"  # (vocabulary, dim)
    CONV = "conv"  # (out, in/groups, k…)
    EXPERTS = "experts"  # (experts, out, in) or (experts, in, out)
    OTHER = "other"  # biases, norms, bare parameters: nothing that LoRA factors


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of a model.

    ``is_tied`` marks one that is another's memory: LoRA may be put on it, but its elements are counted there.
    ``is_output`` marks what makes logits or classes, which PEFT's ``all-linear`` leaves out: the output embedding, and
    whatever is called ``score`` or ``classifier``, which its classification tasks train whole.
    """

    name: str
    shape: tuple[int, ...]  # as stored
    kind: WeightKind
    is_tied: bool = False
    is_output: bool = False
    fused: int = 1  # how many matrices are one on top of the other, of a stack of experts

    @property
    def module(self) -> str:
        """Path of the module that holds it."""
        return self.name.removesuffix(_WEIGHT)

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def sides(self) -> tuple[int, int]:
        """(out, in) of the matrix that a LoRA factors; a kernel is flattened to (out, in·k…), an expert is one of many.

        Examples
        --------
        >>> Weight("conv.weight", (8, 3, 5, 5), WeightKind.CONV).sides
        (8, 75)
        >>> Weight("h.0.attn.c_attn.weight", (768, 2304), WeightKind.CONV1D).sides
        (2304, 768)
        """
        if self.kind is WeightKind.EXPERTS:
            return self.shape[1], self.shape[2]
        if self.kind in (WeightKind.CONV1D, WeightKind.EMBEDDING):
            return self.shape[1], self.shape[0]
        return self.shape[0], prod(self.shape[1:])

    @property
    def matrices(self) -> int:
        """How many matrices it holds: the experts of a stack, otherwise one."""
        return self.shape[0] if self.kind is WeightKind.EXPERTS else 1


class Sheet:
    """What a family reads its settings from and writes its weights on.

    Parameters
    ----------
    configuration : a config.json, as parsed
    """

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self._configuration = configuration
        self.weights: list[Weight] = []

    def number(self, *names: str, default: int | None = None) -> int:
        """The positive integer under the first of `names` that is there; CompatibilityError when there is none."""
        for name in names:
            value = self._configuration.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
                raise self._refusal(name, value)
            return value
        if default is None:
            raise self._refusal(names[0], None)
        return default

    def layers(self, *names: str, default: int | None = None) -> int:
        """A number of layers; 0 is one."""
        if any(self._configuration.get(name) == 0 for name in names[:1]):
            return 0
        count = self.number(*names, default=default)
        if count > _MOST_LAYERS:
            raise self._refusal(names[0], count)
        return count

    def flag(self, name: str, *, default: bool) -> bool:
        """Yes or no."""
        value = self._configuration.get(name)
        return default if value is None else bool(value)

    def text(self, name: str, default: str = "") -> str:
        """A word."""
        value = self._configuration.get(name)
        return value if isinstance(value, str) else default

    def value(self, name: str) -> Any:
        """Whatever is there, None when nothing is."""
        return self._configuration.get(name)

    @property
    def labels(self) -> int:
        """How many classes a classifier tells apart."""
        named = self._configuration.get("id2label")
        return len(named) if isinstance(named, dict) and named else self.number("num_labels", default=2)

    def linear(self, module: str, shape: tuple[int, int], *, bias: bool = False, **marks: bool) -> None:
        """Write a linear layer of `shape` (out, in)."""
        self.weights.append(Weight(f"{module}.weight", shape, WeightKind.LINEAR, **marks))
        if bias:
            self.weights.append(Weight(f"{module}.bias", shape[:1], WeightKind.OTHER))

    def conv1d(self, module: str, shape: tuple[int, int]) -> None:
        """Write a linear layer that stores its weight as (in, out)."""
        self.weights.append(Weight(f"{module}.weight", shape, WeightKind.CONV1D))
        self.weights.append(Weight(f"{module}.bias", shape[1:], WeightKind.OTHER))

    def conv(self, module: str, shape: tuple[int, ...], *, bias: bool = True) -> None:
        """Write a convolution of kernel `shape` (out, in, k…)."""
        self.weights.append(Weight(f"{module}.weight", shape, WeightKind.CONV))
        if bias:
            self.weights.append(Weight(f"{module}.bias", shape[:1], WeightKind.OTHER))

    def embedding(self, module: str, rows: int, dim: int, *, is_tied: bool = False) -> None:
        """Write an embedding."""
        self.weights.append(Weight(f"{module}.weight", (rows, dim), WeightKind.EMBEDDING, is_tied=is_tied))

    def experts(self, name: str, experts: int, outputs: int, inputs: int, *, fused: int = 1) -> None:
        """Write a stack of experts, (experts, out, in), which is a parameter of its own."""
        self.weights.append(Weight(name, (experts, outputs, inputs), WeightKind.EXPERTS, fused=fused))

    def norm(self, module: str, size: int, *, bias: bool = True) -> None:
        """Write a norm: a weight, and a bias where it is LayerNorm's."""
        self.weights.append(Weight(f"{module}.weight", (size,), WeightKind.OTHER))
        if bias:
            self.weights.append(Weight(f"{module}.bias", (size,), WeightKind.OTHER))

    def bare(self, name: str, *shape: int, is_tied: bool = False) -> None:
        """Write a parameter that no module of its own holds."""
        self.weights.append(Weight(name, shape, WeightKind.OTHER, is_tied=is_tied))

    def _refusal(self, name: str, value: object) -> CompatibilityError:
        got = "is not there" if value is None else f"is {quoted(value)}"
        return CompatibilityError(
            f"The setting {quoted(name)} of the configuration {got}, expected a positive integer of a known size.",
            hint="Give the model's weights, or its matrices with --matrix COUNTxOUTxIN.",
        )
