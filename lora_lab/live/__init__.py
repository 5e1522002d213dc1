"""LoRA on a running torch model: attach, train, merge, switch, save.

``h = W0 x + scaling · B(A x)``: W0 stays frozen, A starts Gaussian, B starts at zero, and B·A is all that is learned.
Read in this order: ``config`` (what is asked for), ``layers`` (the arithmetic), ``model`` (many layers as one adapter),
``files`` (PEFT's layout), ``training`` (a loop), ``recorder`` (the low rank of what full training adds up).
Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
"""

from lora_lab.live.config import LoraConfig
from lora_lab.live.files import load_adapter, save_adapter
from lora_lab.live.layers import Factors, LoraEmbedding, LoraLinear
from lora_lab.live.model import LoraModel
from lora_lab.live.recorder import GradientRecorder
from lora_lab.live.training import train

__all__ = [
    "Factors",
    "GradientRecorder",
    "LoraConfig",
    "LoraEmbedding",
    "LoraLinear",
    "LoraModel",
    "load_adapter",
    "save_adapter",
    "train",
]
