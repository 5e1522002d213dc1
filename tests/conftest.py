"""What every test shares: no trace of the person's own machine, and where the samples are."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from hubserver import HubServer

# A property is about values; how long one takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parents[1]

# A shell that starts the tests in the background leaves SIGINT ignored, and so it would be in every process that they
# start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches and state go to a fresh folder, the Hub is out of reach, and animations stand still."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("LORA_LAB_CACHE_DIR", str(home / "cache"))
    monkeypatch.setenv("LORA_LAB_DATA_DIR", str(home / "data"))
    monkeypatch.setenv("LORA_LAB_STATE_DIR", str(home / "state"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    for name in ("HF_TOKEN", "NO_COLOR", "COLUMNS", "LINES", "LORA_LAB_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of sample adapters."""
    return ROOT / "sample_adapters"


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub on loopback, with ``hf_anna`` who may write, ``hf_reads`` of the same person, and ``hf_other``."""
    from hubserver import HubServer

    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        server.add_account("hf_anna", "anna", organizations=("lab",))
        server.add_account("hf_reads", "anna", role="read")
        server.add_account("hf_other", "bert")
        yield server
        assert server.errors == []
