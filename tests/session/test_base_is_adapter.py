"""An adapter where a model is expected: every command says which adapter it is, and which model to give instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import factors, write_adapter, write_base
from hubserver import HubServer
from safetensors.torch import save_file

from lora_lab import Session
from lora_lab.errors import AdapterError


@pytest.fixture
def adapters(tmp_path: Path) -> tuple[str, str]:
    """One to work on, and one that is given as its base."""
    first = write_adapter(tmp_path / "first", base_model_name_or_path="org/model")
    second = write_adapter(tmp_path / "second", base_model_name_or_path="org/model")
    return str(first), str(second)


def analysed(name: str) -> Any:
    return lambda session, it, wrong, out: session.analyze(name, [it], base=wrong)


CALLS: dict[str, Any] = {
    "check": analysed("check"),
    "amplify": analysed("amplify"),
    "intruders": analysed("intruders"),
    "merge": lambda session, it, wrong, out: session.merge([it], base=wrong, output=out),
    "merge --dry-run": lambda session, it, wrong, out: session.merge([it], base=wrong, output=out, dry_run=True),
    "combine": lambda session, it, wrong, out: session.combine([it, it], base=wrong, output=out),
    "methods": lambda session, it, wrong, out: session.compare_methods([it, it], base=wrong),
    "unmerge": lambda session, it, wrong, out: session.unmerge(wrong, adapters=[it], output=out),
    "verify": lambda session, it, wrong, out: session.verify(wrong),
    "bench swap": lambda session, it, wrong, out: session.bench_swap([it, it], base=wrong),
    "bench latency": lambda session, it, wrong, out: session.bench_latency(base=wrong),
    "report": lambda session, it, wrong, out: session.report([it], base=wrong, output=out.with_suffix(".html")),
}


@pytest.mark.parametrize("command", list(CALLS))
def test_the_adapter_is_named(command: str, adapters: tuple[str, str], tmp_path: Path) -> None:
    """With what it was trained on, which is what to give; nothing is written."""
    with pytest.raises(AdapterError) as raised:
        CALLS[command](Session(cache=False), *adapters, tmp_path / "out")
    assert raised.value.message == (
        f"'{adapters[1]}' is an adapter, trained on 'org/model', expected a model with weights of its own."
    )
    assert raised.value.hint == "Give the model that it was trained on: its folder, or its name on the Hub."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_one_that_names_no_model(tmp_path: Path) -> None:
    nameless = str(write_adapter(tmp_path / "nameless", base_model_name_or_path=None))
    with pytest.raises(AdapterError, match=r"nameless' is an adapter, expected a model with weights of its own\."):
        Session(cache=False).base(nameless)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "lora.safetensors"])
def test_a_file_of_one(name: str, tmp_path: Path) -> None:
    """A loose file is known by the names of its tensors."""
    folder = write_adapter(tmp_path / "mine")
    if not (folder / name).exists():
        save_file(factors(), folder / name)
    with pytest.raises(AdapterError, match="is an adapter"):
        Session(cache=False).base(str(folder / name))


def test_a_format_that_is_known_by_name(tmp_path: Path) -> None:
    tensors = {name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): t for name, t in factors().items()}
    save_file(tensors, tmp_path / "kohya.safetensors")
    with pytest.raises(AdapterError, match=r"kohya.safetensors' is an adapter, expected a model"):
        Session(cache=False).base(str(tmp_path / "kohya.safetensors"))


def test_a_model_that_lies_beside_its_adapter_is_one(tmp_path: Path) -> None:
    """A folder with both is taken for what is asked for."""
    folder = write_base(write_adapter(tmp_path / "both"))
    assert len(Session(cache=False).base(str(folder / "model.safetensors")).tensors) == 3
    assert len(Session(cache=False).adapter(str(folder)).deltas) == 3


def test_one_of_the_hub_is_not_fetched_for_it(hub: HubServer, tmp_path: Path) -> None:
    """Its configuration is enough to say what it is."""
    folder = write_adapter(tmp_path / "mine", base_model_name_or_path="org/model")
    hub.add("anna/mine", folder)
    ran = hub.run_lab("merge", str(folder), "--base", "anna/mine", "-o", "out", home=tmp_path)
    assert ran.code == 2
    assert "'anna/mine' is an adapter, trained on 'org/model', expected a model" in ran.err
    assert not hub.requests.matching(r"\.safetensors")
