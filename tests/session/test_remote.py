"""Commands on adapters and models of the Hub: the same digits as of local ones, and the commit in every record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import write_adapter, write_base
from hubserver import HubServer

DIGITS = """
import json, os
from lora_lab import Session

session, local, said = Session(), os.environ["LOCAL"], []
for call in (session.inspect, session.spectrum, lambda it: session.analyze("diff", [it, local])):
    said.append([call(locator).to_json() for locator in ("anna/a", local)])
print(json.dumps(said))
"""


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A local adapter, which the Hub has too."""
    return write_adapter(tmp_path / "made", base_model_name_or_path="anna/base")


def test_the_same_digits(hub: HubServer, tmp_path: Path, adapter: Path) -> None:
    """A spectrum, an inspection and a comparison say of a remote adapter what they say of a local one."""
    commit = hub.add("anna/a", adapter)
    said = hub.run_python(DIGITS, home=tmp_path, more={"LOCAL": str(adapter)}).ok().json
    for remote, local in said:
        assert remote["inputs"][0]["revision"] == commit
        assert remote["modules"] == local["modules"]
    assert len(hub.requests.matching("GET /.*resolve")) <= 3
    assert not hub.requests.matching("anna/base")


def test_a_repository_is_listed(hub: HubServer, tmp_path: Path, adapter: Path) -> None:
    """Adapters in folders of their own, a model, and one that is broken, by names and headers."""
    files = {f"checkpoint-{step}/{path.name}": path.read_bytes() for step in (9, 10) for path in adapter.iterdir()}
    base = write_base(tmp_path / "base")
    files |= {f"base/{path.name}": path.read_bytes() for path in base.iterdir()}
    hub.add("anna/many", {**files, "bad/adapter_config.json": "{", "train.py": "x"})
    said = hub.run_lab("ls", "hf://anna/many", "--json", home=tmp_path).ok().json
    assert [(row["name"], row["error"] is None) for row in said["adapters"]] == [
        ("bad", False),
        ("checkpoint-9", True),
        ("checkpoint-10", True),
    ]
    assert [row["name"] for row in said["bases"]] == ["base"]
    only = hub.run_lab("ls", "anna/many:checkpoint-9", "--json", home=tmp_path).ok().json
    assert len(only["adapters"]) == 1
    wrong = hub.run_lab("inspect", "anna/many", home=tmp_path)
    assert wrong.code == 2
    assert "'anna/many:checkpoint-9'" in wrong.err


def test_a_receipt_knows_the_commit_and_is_replayed_from_it(hub: HubServer, tmp_path: Path, adapter: Path) -> None:
    """What was pushed afterwards under the same name does not count."""
    base = write_base(tmp_path / "base")
    commit = hub.add("anna/a", adapter)
    merged = ("merge", "anna/a", "--base", str(base), "-o", "merged")
    hub.run_lab(*merged, home=tmp_path).ok()
    receipt = json.loads((tmp_path / "merged" / "lora_lab_receipt.json").read_text())
    assert [entry["revision"] for entry in receipt["inputs"] if entry["locator"] == "anna/a"] == [commit]
    hub.add("anna/a", write_adapter(tmp_path / "newer", seed=1))
    hub.run_lab("replay", "merged", "-o", "again", home=tmp_path).ok()
    first, second = (tmp_path / name / "model.safetensors" for name in ("merged", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_a_mirror_that_lists_names_alone(hub: HubServer, tmp_path: Path, adapter: Path) -> None:
    """Sizes and hashes are those of the tree then."""
    hub.lists_sizes = False
    hub.add("anna/a", adapter)
    said = hub.run_lab("pull", "anna/a", "--dry-run", "--json", home=tmp_path).ok().json
    assert said["bytes_to_fetch"] == sum(path.stat().st_size for path in adapter.iterdir())
    assert len(hub.requests.matching("/tree/")) == 1
