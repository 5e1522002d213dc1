"""Look into, compare and change LoRA adapters.

The public names load on first use, so that ``import lora_lab`` costs nothing.

>>> import lora_lab
>>> lora_lab.__version__.count(".")
2
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.version import __version__

if TYPE_CHECKING:
    from lora_lab.domain.adapter import Adapter, Delta
    from lora_lab.domain.base import Base
    from lora_lab.domain.report import Report
    from lora_lab.errors import LoraLabError
    from lora_lab.extension.hooks import hookimpl
    from lora_lab.session import Session

__all__ = ["Adapter", "Base", "Delta", "LoraLabError", "Report", "Session", "__version__", "hookimpl"]

_HOMES = {
    "Adapter": "lora_lab.domain.adapter",
    "Base": "lora_lab.domain.base",
    "Delta": "lora_lab.domain.adapter",
    "LoraLabError": "lora_lab.errors",
    "Report": "lora_lab.domain.report",
    "Session": "lora_lab.session",
    "hookimpl": "lora_lab.extension.hooks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
