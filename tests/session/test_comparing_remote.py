"""Methods compared against a base of the Hub: what is fetched of it is what the adapters' changes are made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import factors, write_adapter
from hubserver import HubServer
from large_base import SHARDS, SIDE, TENSOR_BYTES, write_large_base

FEW = {f"model.layers.{layer}.self_attn.q_proj": (SIDE, SIDE) for layer in (0, 20, 40)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and adapters that need it on three modules, or not at all."""
    folder = tmp_path_factory.mktemp("remote")
    write_large_base(folder / "base")
    write_adapter(folder / "plain", factors(FEW))
    write_adapter(folder / "other", factors(FEW, seed=1))
    write_adapter(folder / "pissa", factors(FEW, seed=2), init_lora_weights="pissa")
    tensors = factors(FEW, seed=3)
    for module in FEW:
        tensors[f"base_model.model.{module}.lora_magnitude_vector.weight"] = torch.ones(SIDE)
    write_adapter(folder / "dora", tensors, use_dora=True)
    return folder


@pytest.fixture
def served(hub: HubServer, folder: Path, tmp_path: Path) -> HubServer:
    """A hub with the base, whose headers are known already in the home of a test."""
    hub.add("anna/base", folder / "base")
    hub.run_lab("inspect", "anna/base", home=tmp_path).ok()
    return hub


def compared(hub: HubServer, folder: Path, home: Path, second: str, base: str, *more: str) -> Any:
    """What ``methods`` says of an adapter and another; the log begins anew."""
    adapters = [str(folder / "plain"), str(folder / second)]
    hub.requests.clear()
    command = ("methods", *adapters, "--base", base, "--json", *more)
    return hub.run_lab(*command, home=home).ok().json


@pytest.mark.parametrize(("second", "needed"), [("other", 0), ("pissa", 3), ("dora", 3)])
def test_no_more_than_is_needed(second: str, needed: int, served: HubServer, folder: Path, tmp_path: Path) -> None:
    """The same numbers as with the base here; where no adapter needs it, nothing of it is fetched."""
    here = compared(served, folder, tmp_path, second, str(folder / "base"))
    assert len(served.requests) == 0
    there = compared(served, folder, tmp_path, second, "anna/base")
    assert served.requests.sent("^GET", origin="storage") == needed * TENSOR_BYTES
    assert there["methods"] == here["methods"]
    assert there["sum"] == here["sum"]
    record = there["inputs"][-1]
    assert len(record["sha256"]) == SHARDS
    assert record["partial"]["fetched_bytes"] == needed * TENSOR_BYTES
    assert ("partial_read" in json.dumps(there["warnings"])) is (needed > 0)


def test_the_modules_that_are_asked_for(served: HubServer, folder: Path, tmp_path: Path) -> None:
    """A sample of the whole takes a sample of the base."""
    there = compared(served, folder, tmp_path, "pissa", "anna/base", "--module", "*.20.*")
    assert there["inputs"][-1]["partial"]["fetched_bytes"] == TENSOR_BYTES


def test_a_base_that_is_read_anew_and_anew_is_fetched_whole(served: HubServer, folder: Path, tmp_path: Path) -> None:
    """DoRA's rows are made for every method: more of them than are kept at once would be fetched as often."""
    code = """
    import json, os
    from lora_lab import Session
    from lora_lab.sources import spool

    spool._MOST_RUNS = 2
    folder = os.environ["FOLDER"]
    report = Session().compare_methods([f"{folder}/plain", f"{folder}/dora"], base="anna/base", methods=["linear"])
    print(json.dumps(report.to_json()["inputs"][-1]))
    """
    record = served.run_python(code, home=tmp_path, more={"FOLDER": str(folder)}).ok().json
    assert "partial" not in record
    assert not any("#header" in name for name in record["sha256"])
