"""Which device computes: the one asked for, or the fastest that is there."""

from __future__ import annotations

import re
from typing import Final

from lora_lab.errors import LoraLabError, quoted

_CHOICES: Final = "auto, cpu, cuda, cuda:N or mps"
# Float64 operations of a spectrum from which on `auto` gives it to a device. Reasoned, no device having been measured:
# a spectrum of rank r does 4·r² operations for each row of its factors, about r for each byte that has to reach the
# device. At PCIe's nominal 32 to 64 GB/s that is at most r·64·10⁹ a second, at rank 16 what some ten processors do, and
# CUDA has to be started before. The 2.4·10⁹ of 224 modules of a 7B model at rank 16 take two processors half a second,
# reading included (bench_spectrum.py): it takes some forty times as much to be worth it.
DEVICE_PAYS_OPERATIONS: Final = 1e11
_CUDA: Final = re.compile(r"cuda(?::([0-9]{1,4}))?")


def resolve_device(text: str) -> str:
    """Turn what a person typed into a device that is there.

    ``auto`` is the first CUDA (or ROCm) device, else the processor. It is never ``mps``: spectra need float64, which
    Metal does not have.

    Parameters
    ----------
    text : auto, cpu, cuda, cuda:N or mps

    Returns
    -------
    ``cpu``, ``cuda:N`` or ``mps``

    Raises
    ------
    LoraLabError
        the text names no device, or one that this machine or this torch does not have.

    Examples
    --------
    >>> resolve_device("cpu")
    'cpu'
    """
    if text == "cpu":
        return text
    import torch

    if text == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if text == "mps":
        if torch.backends.mps.is_available():
            return text
        raise _absent(text, "Metal is not available to this torch")
    named = _CUDA.fullmatch(text)
    if named is None:
        raise LoraLabError(f"The device is {quoted(text)}, expected {_CHOICES}.")
    if not torch.cuda.is_available():
        raise _absent(text, "this torch finds no CUDA device")
    index, count = int(named[1] or 0), torch.cuda.device_count()
    if index >= count:
        raise _absent(text, f"this machine has {count}, counted from cuda:0")
    return f"cuda:{index}"


def has_float64(device: str) -> bool:
    """Whether `device` computes in float64; where it does not, small dense algebra runs on the processor.

    Examples
    --------
    >>> has_float64("cuda:0"), has_float64("mps")
    (True, False)
    """
    return not device.startswith("mps")


def _absent(text: str, why: str) -> LoraLabError:
    return LoraLabError(f"The device {quoted(text)} is not there: {why}.", hint="Use --device auto or --device cpu.")
