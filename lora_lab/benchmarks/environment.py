"""Where something was measured: enough to know whether two results may be compared."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from lora_lab.domain.report import Column, ColumnKind, Scalars
from lora_lab.version import __version__

_CPUS: Final = Path("/sys/devices/system/cpu")
_GROUP: Final = Path("/proc/self/cgroup")
_GROUPS: Final = Path("/sys/fs/cgroup")
_SECONDS: Final = 5.0  # that asking another program may take
_PACKAGE: Final = Path(__file__).resolve().parents[1]
_GPU_FIELDS: Final = {
    "driver_version": "driver",
    "clocks.sm": "sm_clock",
    "clocks.max.sm": "sm_clock_limit",
    "clocks.mem": "memory_clock",
    "power.limit": "power_limit",
    "persistence_mode": "persistence_mode",
}
_TITLES: Final = {
    "measured_at": "Measured",
    "lora_lab": "lora-lab",
    "commit": "Commit",
    "device": "Device",
    "device_name": "Device is a",
    "cpu": "Processor",
    "processors": "Processors",
    "threads": "Threads",
    "workers": "Workers of a swap",
    "nice": "Niceness",
    "last_level_cache_bytes": "Last-level cache",
    "memory_bytes": "Memory",
    "load": "Load before",
    "governor": "Governor",
    "system": "System",
    "python": "Python",
    "torch": "torch",
    "cuda": "CUDA",
}
_ALWAYS: Final = ("measured_at", "lora_lab", "device", "device_name", "cpu", "threads", "load", "torch")
_BYTES: Final = ("last_level_cache_bytes", "memory_bytes")


def environment_of(device: str) -> dict[str, Any]:
    """Describe machine, device, versions and how busy it is; what the system does not say is None.

    Parameters
    ----------
    device : resolved: cpu, cuda:N, mps

    Examples
    --------
    >>> environment_of("cpu")["device"]
    'cpu'
    """
    import torch

    from lora_lab.linalg.threads import worker_count

    found = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "lora_lab": __version__,
        "commit": _commit(),
        "device": device,
        "device_name": _cpu_name(),
        "cpu": _cpu_name(),
        "processors": _processors(),
        "threads": torch.get_num_threads(),
        "workers": worker_count(),
        "nice": os.nice(0) if hasattr(os, "nice") else None,
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": memory_bytes(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "governor": _text(_CPUS / "cpu0/cpufreq/scaling_governor"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if device.startswith("cuda"):
        found |= _gpu(device)
    return found


def environment_scalars(environment: dict[str, Any]) -> Scalars:
    """The same for a Report, where JSON has all of it and a person the most telling."""
    columns = tuple(
        Column(
            name,
            _TITLES.get(name, name.replace("_", " ").capitalize()),
            ColumnKind.BYTES if name in _BYTES else ColumnKind.NUMBER if name == "load" else ColumnKind.VALUE,
            is_wide=name not in _ALWAYS,
        )
        for name in environment
    )
    return Scalars("environment", "Environment", columns, environment)


def last_level_cache_bytes() -> int | None:
    """Size of the largest cache that processor 0 has."""
    sizes = []
    for index in (_CPUS / "cpu0/cache").glob("index*"):
        text = _text(index / "size")
        with suppress(ValueError, KeyError):
            if text:
                sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]])
    return max(sizes, default=None)


def memory_bytes() -> int | None:
    """Memory of the machine."""
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def available_memory_bytes() -> int | None:
    """Memory that this process can have without others losing theirs, and within what its container may take."""
    there = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        there.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024)
    left = _left_in_groups()
    return min([*there, *left], default=None)


def _left_in_groups() -> list[int]:
    """What every control group (version 2) around this process still lets it have; files it read can be forgotten.

    Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, memory.max, memory.current and memory.stat.
    """
    named = (_text(_GROUP) or "").splitlines()
    own = next((line.removeprefix("0::/") for line in named if line.startswith("0::/")), None)
    if own is None:
        return []
    left = []
    for folder in (_GROUPS / own, *(_GROUPS / own).parents):
        most, now = (_text(folder / name) or "" for name in ("memory.max", "memory.current"))
        if most.isdecimal() and now.isdecimal():
            told = dict(line.split(maxsplit=1) for line in (_text(folder / "memory.stat") or "").splitlines())
            forgettable = told.get("inactive_file", "0")
            left.append(max(0, int(most) - int(now) + int(forgettable if forgettable.isdecimal() else 0)))
        if folder == _GROUPS:
            break
    return left


def _gpu(device: str) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(device)
    asked = ",".join(_GPU_FIELDS)
    # By its bus, since what is visible may be renumbered.
    answer = _said("nvidia-smi", f"--id={_bus(properties)}", f"--query-gpu={asked}", "--format=csv,noheader") or ""
    told = dict(zip(_GPU_FIELDS.values(), (part.strip() for part in answer.split(",")), strict=False))
    return {
        "device_name": properties.name,
        "device_memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        **({name: told.get(name) for name in _GPU_FIELDS.values()} if answer else {}),
    }


def _bus(properties: Any) -> str:
    places = (getattr(properties, name, 0) for name in ("pci_domain_id", "pci_bus_id", "pci_device_id"))
    domain, bus, device = places
    return f"{domain:08x}:{bus:02x}:{device:02x}.0"


def _cpu_name() -> str | None:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine() or None


def _processors() -> int | None:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not a Linux
        return os.cpu_count()


def _commit() -> str | None:
    """Commit of the checkout that this code runs from, with + where it was changed; None where it is installed."""
    if not (_PACKAGE.parent / ".git").exists():
        return None
    found = _said("git", "-C", str(_PACKAGE.parent), "rev-parse", "--short=12", "HEAD")
    changed = _said("git", "-C", str(_PACKAGE.parent), "status", "--porcelain", "--", _PACKAGE.name)
    return found and found + ("+" if changed else "")


def _said(*command: str) -> str | None:
    """What another program prints, in one line; None where it is not there or fails."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        return done.stdout.strip()
    return None


def _text(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text().strip() or None
    return None
