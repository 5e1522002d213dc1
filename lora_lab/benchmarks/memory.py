"""How much memory there is, and how much a piece of work takes beyond what is there already."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_lab.benchmarks.environment import available_memory_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

_PROCESS: Final = Path("/proc/self")
_RESET_PEAK: Final = "5"  # proc(5), clear_refs


def available_bytes(device: str) -> int | None:
    """Bytes that can still be had on `device`; None where nobody says."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available_memory_bytes()


def cache_bytes(device: str) -> int | None:
    """Size of the last-level cache before the memory of `device`."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    from lora_lab.benchmarks.environment import last_level_cache_bytes

    return last_level_cache_bytes()


def peak_bytes_of(work: Callable[[], object], device: str) -> int | None:
    """Most memory that `work` held at once beyond what was held before; None where it cannot be known.

    On the processor the kernel counts whole pages of the process, so that memory which the allocator had kept from
    earlier work is not seen.
    """
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    is_reset = False
    if device == "cpu":
        with suppress(OSError):
            (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
            is_reset = True
    resident = _status_bytes("VmRSS")
    work()
    peak = _status_bytes("VmHWM")
    return max(0, peak - resident) if is_reset and peak is not None and resident is not None else None


def _status_bytes(name: str) -> int | None:
    with suppress(OSError, ValueError, StopIteration):
        lines = (_PROCESS / "status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024
    return None
