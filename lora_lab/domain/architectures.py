"""Which weights a model has, and of which shapes, from its ``config.json`` alone.

A family writes its weights on a :class:`~lora_lab.domain.sheet.Sheet`, with the names and shapes that transformers
gives them; what is not known is refused by name. The families are in :mod:`lora_lab.domain.decoders` and
:mod:`lora_lab.domain.encoders`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_lab.domain.decoders import DECODERS
from lora_lab.domain.encoders import ENCODERS
from lora_lab.domain.modules import natural_key
from lora_lab.domain.sheet import Sheet
from lora_lab.errors import CompatibilityError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.domain.sheet import Weight


@dataclass(frozen=True, slots=True)
class Architecture:
    """The weights of a model, in natural order of their names; ``head`` is the class's last part, such as CausalLM."""

    family: str
    head: str
    weights: tuple[Weight, ...]
    is_head_known: bool = True

    @property
    def parameters(self) -> int:
        """Elements of every weight, tied ones once."""
        return sum(weight.elements for weight in self.weights if not weight.is_tied)


def known_families() -> tuple[str, ...]:
    """Every model_type whose weights can be written down, in order."""
    return tuple(sorted({*DECODERS, *ENCODERS}))


def architecture_of(configuration: Mapping[str, Any], *, name: str = "") -> Architecture:
    """Write down the weights of the model that a config.json describes.

    Parameters
    ----------
    name : of the model, for the sentence of an error

    Raises
    ------
    CompatibilityError
        the model_type is not known, or a setting that its shapes follow from is missing or no positive integer.

    Notes
    -----
    The class under ``architectures`` says which head there is; without one it is a decoder's language model, and an
    encoder alone. Names and shapes are those of transformers 4 and 5. O(layers) time.

    Examples
    --------
    >>> small = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "vocab_size": 50257, "n_positions": 1024}
    >>> architecture_of(small).parameters
    124439808
    """
    family = configuration.get("model_type")
    write = DECODERS.get(family) or ENCODERS.get(family) if isinstance(family, str) else None
    if write is None or not isinstance(family, str):
        called = f"The configuration of {quoted(name)}" if name else "The configuration"
        raise CompatibilityError(
            f"{called} has the model_type {quoted(family)}, expected one of: {', '.join(known_families())}.",
            hint="Give the model's weights instead, or its matrices with --matrix COUNTxOUTxIN.",
        )
    sheet = Sheet(configuration)
    head = _head(configuration) or ("CausalLM" if family in DECODERS else "Model")
    is_known = write(sheet, head)
    weights = tuple(sorted(sheet.weights, key=lambda weight: natural_key(weight.name)))
    return Architecture(family, head, weights, is_known)


def _head(configuration: Mapping[str, Any]) -> str:
    """What follows ``For`` in the name of the model's class; LMHeadModel is CausalLM, a plain model is Model."""
    classes = configuration.get("architectures")
    if not isinstance(classes, list) or not classes or not isinstance(classes[0], str):
        return ""
    _, separator, head = classes[0].partition("For")
    if separator:
        return head
    if classes[0].endswith("EncoderModel"):
        return "EncoderModel"
    return "CausalLM" if classes[0].endswith("LMHeadModel") else "Model"
