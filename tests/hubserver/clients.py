"""Code that talks to a server, in a process of its own: the client reads its settings when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
_TAKEN = ("HF_", "HUGGING", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY")


@dataclass(frozen=True)
class Ran:
    """What a process left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)

    def ok(self) -> Ran:
        """Insist that all went well."""
        assert self.code == 0, f"exit {self.code}\n{self.out}\n{self.err}"
        return self


def environment(
    *,
    endpoint: str,
    home: Path,
    token: str | None = None,
    xet: bool = True,
    offline: bool = False,
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Settings of a fresh machine whose Hub is `endpoint`, with its cache, state and login under `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_TAKEN)}
    kept |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "LORA_LAB_CACHE_DIR": str(home / "cache"),
        "LORA_LAB_STATE_DIR": str(home / "state"),
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), kept.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    if token is not None:
        kept["HF_TOKEN"] = token
    if not xet:
        kept["HF_HUB_DISABLE_XET"] = "1"
    if offline:
        kept["HF_HUB_OFFLINE"] = "1"
    return kept | dict(more or {})


def run_python(code: str, *, endpoint: str, home: Path, timeout: float = 120.0, **settings: Any) -> Ran:
    """Run Python code, dedented; `settings` are those of :func:`environment`."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return _run(command, environment(endpoint=endpoint, home=home, **settings), home, timeout)


def run_lab(*arguments: str, endpoint: str, home: Path, timeout: float = 120.0, **settings: Any) -> Ran:
    """Run ``lora-lab`` with `home` as its working directory."""
    command = [sys.executable, "-m", "lora_lab", *arguments]
    return _run(command, environment(endpoint=endpoint, home=home, **settings), home, timeout)


def _run(command: list[str], settings: dict[str, str], home: Path, timeout: float) -> Ran:
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command,
        env=settings,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
