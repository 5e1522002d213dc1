"""The process that unpickles: run as a script of its own, it turns one torch archive into safetensors and ends.

It gets the archive as its standard input, an empty environment and limits on memory, time and what it may write; it
answers with one line of JSON, ``{}`` or why not. It needs torch and safetensors and nothing of this package.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

# Before 2.10 a weights-only pickle could corrupt memory (CVE-2026-24747), before 2.6 run code (CVE-2025-32434).
OLDEST_TORCH: Final = (2, 10)
_SPARE_BYTES: Final = 1 << 30
_HEADER_BYTES: Final = 16 << 20
_SECONDS_AT_LEAST: Final = 60
_BYTES_A_SECOND: Final = 20 << 20


def is_recent(version: str) -> bool:
    """Whether a version of torch may be given a pickle.

    Examples
    --------
    >>> is_recent("2.9.1"), is_recent("2.10.0+cpu"), is_recent("3.0")
    (False, True, True)
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= OLDEST_TORCH


def limit_resources(size: int) -> None:
    """Take away what converting an archive of `size` bytes does not need: memory, time, disk, processes."""
    try:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # a system where the limit on memory is not kept either
        mapped = 0
    seconds = _SECONDS_AT_LEAST + size // _BYTES_A_SECOND
    limits = [
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, size + _HEADER_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ]
    if mapped:
        limits.append((resource.RLIMIT_AS, mapped + 3 * size + _SPARE_BYTES))
    for kind, most in limits:
        _, ceiling = resource.getrlimit(kind)
        most = most if ceiling == resource.RLIM_INFINITY else min(most, ceiling)
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):  # a system without this limit
            continue


def refusal(loaded: Any, size: int) -> dict[str, Any]:
    """Why what was loaded from an archive of `size` bytes is not written; empty when it is.

    A view may claim more elements than its storage has bytes, by strides of zero or by overlapping another. The
    tensors together may take no more bytes than the archive.
    """
    import torch

    if not isinstance(loaded, Mapping):
        return {"reason": "not_a_mapping", "type": type(loaded).__name__}
    total = 0
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            return {"reason": "not_a_tensor", "name": str(name), "type": type(tensor).__name__}
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            return {"reason": "not_dense", "name": name}
        total += tensor.numel() * tensor.element_size()
        if total > size:
            return {"reason": "overlap", "name": name, "shape": list(tensor.shape), "bytes": total, "size": size}
    return {}


def convert(target: str) -> dict[str, Any]:
    """Convert the archive on standard input to the file `target`; empty, or why not."""
    import torch

    if not is_recent(torch.__version__):
        return {"reason": "old_torch", "version": torch.__version__}
    from safetensors.torch import save_file

    source = sys.stdin.buffer
    size = os.fstat(source.fileno()).st_size
    torch.set_num_threads(1)
    limit_resources(size)
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(source)
        if unsafe:
            return {"reason": "globals", "names": unsafe}
        source.seek(0)
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own text names switches that do not exist here
        return {"reason": "unreadable", "type": type(error).__name__}
    refused = refusal(loaded, size)
    if not refused:
        try:
            save_file({name: _plain(tensor) for name, tensor in loaded.items()}, target)
        except (KeyError, ValueError) as error:  # a dtype or a name that safetensors does not have
            return {"reason": "not_storable", "type": type(error).__name__}
    return refused


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The values in memory of their own, in row-major order."""
    import torch

    return tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(convert(sys.argv[1])))
