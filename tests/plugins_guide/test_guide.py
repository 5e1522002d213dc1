"""The guide for plugin authors holds: its plugin runs as printed, and it lists every hook as it is."""

from __future__ import annotations

import importlib.util
import inspect
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pluggy
import pytest
import torch

from lora_lab.domain.adapter import Adapter, Delta, DeltaKind
from lora_lab.domain.dtypes import DType
from lora_lab.domain.tensors import FileStamp, TensorRef
from lora_lab.extension import hooks
from lora_lab.extension.contracts import Analysis, AnalysisContext, Factors

if TYPE_CHECKING:
    from types import ModuleType

GUIDE = Path(__file__).parents[2] / "plugins" / "README.md"
TEXT = GUIDE.read_text(encoding="utf-8")
SPECIFIED = {name: value for name, value in vars(hooks).items() if hasattr(value, f"{hooks.PROJECT}_spec")}


def block(language: str) -> str:
    """The only block of this language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return found


@pytest.fixture
def plugin(tmp_path) -> ModuleType:
    """The guide's plugin, imported from a file as it is printed."""
    name = tomllib.loads(block("toml"))["project"]["entry-points"]["lora_lab"]["balance"]
    path = tmp_path / f"{name}.py"
    path.write_text(block("python"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Memory:
    """A Reader of one pair of factors, whatever is asked for."""

    def __init__(self, lora_A: torch.Tensor, lora_B: torch.Tensor) -> None:
        self.held = Factors(lora_A, lora_B, 1.0)

    def factors_of(self, deltas):
        return ((delta, self.held) for delta in deltas)


def adapter() -> Adapter:
    stamp = FileStamp("/nowhere", 1, 0, 1, 1)
    refs = [TensorRef(stamp, name, DType.F32, shape, 0, 1) for name, shape in (("A", (2, 5)), ("B", (4, 2)))]
    deltas = tuple(Delta(f"layers.{i}.q_proj", DeltaKind.LINEAR, *refs, 2, 2.0, 1.0, (4, 5)) for i in range(3))
    return Adapter("mine", "mine", "/nowhere", "peft", deltas, (stamp,))


def test_the_printed_plugin_registers_and_runs(plugin):
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    manager.register(plugin)
    manager.check_pending()
    ((analysis,),) = manager.hook.lora_lab_analyses()
    assert isinstance(analysis, Analysis)
    lora_A, lora_B = torch.arange(10.0).reshape(2, 5), torch.ones(4, 2)
    context = AnalysisContext((adapter(),), Memory(lora_A, lora_B), modules=("layers.1.*",))
    document = analysis.run(context).to_json()
    expected = np.linalg.norm(lora_B.numpy()) / np.linalg.norm(lora_A.numpy())
    assert [row["module"] for row in document["modules"]] == ["layers.1.q_proj"]
    assert document["modules"][0]["balance"] == pytest.approx(expected)


def test_the_printed_plugin_has_no_nan(plugin):
    (analysis,) = plugin.lora_lab_analyses()
    context = AnalysisContext((adapter(),), Memory(torch.zeros(2, 5), torch.ones(4, 2)))
    assert {row["balance"] for row in analysis.run(context).tables[0].rows} == {None}


def test_it_takes_about_twenty_lines():
    lines = [line for line in block("python").splitlines() if line.strip()]
    assert len(lines) <= 25


def test_every_hook_is_listed_with_its_signature():
    listed = re.findall(r"^\| `(lora_lab_\w+)(\(.*?\) -> .*?)` \|", TEXT, re.MULTILINE)
    assert dict(listed) == {name: str(inspect.signature(hook)).replace("'", "") for name, hook in SPECIFIED.items()}
    assert len(listed) == len(SPECIFIED) > 0


def test_every_plugin_here_is_listed():
    folders = sorted(path.parent.name for path in GUIDE.parent.glob("*/pyproject.toml"))
    assert folders
    assert sorted(re.findall(r"^\| \[`(lora-lab-[\w-]+)`\]", TEXT, re.MULTILINE)) == folders
    for folder in folders:
        project = tomllib.loads((GUIDE.parent / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert project["name"] == folder
        assert project["entry-points"]["lora_lab"]
