"""The distribution as it is installed: adapters of files combined, read by PEFT, told of in a receipt, made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lora_lab_subspace
import pytest
import torch
from lora_lab_subspace.plugin import lora_lab_merge_methods
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_lab import LoraLabError, Session
from lora_lab.errors import PluginError
from lora_lab.extension.contracts import Factors, MergeContext
from lora_lab.formats.factors import FactorReader

if TYPE_CHECKING:
    from collections.abc import Callable

METHODS = {method.id: method for method in lora_lab_merge_methods()}
EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a folder that holds what pip writes about the distribution, in some version."""

    def make(version: str) -> Path:
        site = tmp_path_factory.mktemp("site")
        about = site / f"lora_lab_subspace-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lora-lab-subspace\nVersion: {version}\n")
        (about / "entry_points.txt").write_text("[lora_lab]\nsubspace = lora_lab_subspace.plugin\n")
        return site

    return make


@pytest.fixture
def installed(distribution: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions find the plugin, at version 0.1.0."""
    monkeypatch.syspath_prepend(str(distribution("0.1.0")))


class Net(nn.Module):
    """One of each kind of layer that is combined."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.q_proj = nn.Linear(12, 20)
        self.c_attn = Conv1D(24, 12)  # type: ignore[no-untyped-call]
        self.conv = nn.Conv2d(4, 8, 3)


def network() -> Net:
    torch.manual_seed(3)
    return Net()


def peft_adapter(folder: Path, seed: int, **settings: Any) -> str:
    """An adapter as PEFT saves it, with values that nobody has by accident."""
    model = get_peft_model(network(), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))
    return str(folder)


def adapter(folder: Path, rank: int, *, is_dead: bool = False) -> str:
    """Gaussian factors of two layers; of one that is dead lora_B is zero in the first."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(rank)
    tensors = {}
    for layer in (0, 1):
        path = f"base_model.model.layers.{layer}.q_proj"
        tensors[f"{path}.lora_A.weight"] = torch.randn(rank, 16, generator=generator)
        tensors[f"{path}.lora_B.weight"] = torch.randn(24, rank, generator=generator) * float(layer > 0 or not is_dead)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def change(folder: Path) -> dict[str, torch.Tensor]:
    """W′ − W as PEFT loads and merges it, float64."""
    before = {name: tensor.double() for name, tensor in network().state_dict().items()}
    after = PeftModel.from_pretrained(network(), str(folder)).double().merge_and_unload().state_dict()
    return {name: after[name] - tensor for name, tensor in before.items()}


def weight(found: Factors, like: torch.Tensor) -> torch.Tensor:
    """ΔW in the layout of the base's weight, of which no matrix here is square."""
    product = found.scaling * found.lora_B.double() @ found.lora_A.double()
    return (product.T if like.ndim == 2 and product.shape != like.shape else product).reshape(like.shape)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")  # PEFT sees a Conv1D and a linear layer under one word
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cut", [{}, {"rank": 3}, {"energy": 0.8}, {"parameters": 900}])
def test_peft_reads_what_was_computed(tmp_path: Path, method: str, cut: dict[str, Any]) -> None:
    """Linear, Conv1D's other orientation, an embedding and a convolution, of two ranks and two strengths."""
    a = peft_adapter(tmp_path / "a", 1, r=4, lora_alpha=6, target_modules=["q_proj", "c_attn", "embed", "conv"])
    b = peft_adapter(tmp_path / "b", 2, r=2, use_rslora=True, target_modules=["q_proj", "c_attn", "embed"])
    session = Session(cache=False, seed=4)
    report = session.combine([a, b], method=method, strengths=[0.8, -0.6], output=tmp_path / "out", **cut)
    found = change(tmp_path / "out")
    read = [{delta.module: one for delta, one in parts(session, name)} for name in (a, b)]
    rows = {row["module"]: row for row in report.table("modules").rows}
    values = {parameter.id: parameter.default for parameter in METHODS[method].parameters}
    assert any(row["rank"] > 1 for row in rows.values())
    for module, row in rows.items():
        there = [(one[module], strength) for one, strength in zip(read, (0.8, -0.6), strict=True) if module in one]
        given, strengths = [one for one, _ in there], [strength for _, strength in there]
        whole = METHODS[method].combine(given, strengths, MergeContext(values, seed=4))
        expected = weight(whole.factors, found[f"{module}.weight"])
        lost = float((found[f"{module}.weight"] - expected).norm())
        assert row["norm"] == pytest.approx(whole.norm, rel=1e-9)
        assert lost == pytest.approx((row["relative_error"] or 0.0) * whole.norm, rel=1e-4, abs=4 * EPS * whole.norm)
        if not cut:
            assert lost <= 4 * EPS * whole.norm


def parts(session: Session, name: str) -> Any:
    return FactorReader().factors_of(session.adapter(name).deltas)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("method", METHODS)
def test_a_receipt_names_the_plugin_and_a_replay_gives_the_same_bytes(tmp_path: Path, method: str) -> None:
    a, b = (adapter(tmp_path / name, rank) for name, rank in (("a", 3), ("b", 5)))
    Session(cache=False, seed=2).combine([a, b], method=method, strengths=[1.0, 0.5], output=tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "lora_lab_receipt.json").read_text())
    assert receipt["plugins"] == {"lora-lab-subspace": "0.1.0"}
    assert receipt["arguments"]["method"] == method
    assert receipt["arguments"]["settings"] == {
        parameter.id: parameter.default for parameter in METHODS[method].parameters
    }
    assert Session(cache=False).replay(tmp_path / "out", output=tmp_path / "again").verdict is True


@pytest.mark.usefixtures("installed")
def test_a_replay_asks_for_it(tmp_path: Path) -> None:
    a = adapter(tmp_path / "a", 4)
    Session(cache=False).combine([a], method="iso_c", output=tmp_path / "out")
    with pytest.raises(PluginError, match=r"'lora-lab-subspace' 0\.1\.0, which is installed but disabled"):
        Session(cache=False, plugins=False).replay(tmp_path / "out", output=tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.usefixtures("installed")
def test_the_order_of_the_inputs_does_not_show_in_the_file(tmp_path: Path) -> None:
    """But for the method that goes from one to the next."""
    a, b = (adapter(tmp_path / name, rank) for name, rank in (("a", 3), ("b", 5)))
    for method in METHODS:
        outputs = []
        for place, (sources, strengths) in enumerate((([a, b], [1.0, -0.5]), ([b, a], [-0.5, 1.0]))):
            folder = tmp_path / f"{method}{place}"
            Session(cache=False).combine(sources, method=method, strengths=strengths, output=folder)
            outputs.append((folder / "adapter_model.safetensors").read_bytes())
        assert (outputs[0] == outputs[1]) is (method != "svd_orthogonal")


@pytest.mark.usefixtures("installed")
def test_impossible_parameters_write_nothing(tmp_path: Path) -> None:
    a = adapter(tmp_path / "a", 4)
    for settings, told in (({"fraction": 0}, "fraction is 0"), ({"density": 0.5}, "no parameter 'density'")):
        with pytest.raises(LoraLabError, match=told):
            Session(cache=False).combine([a], method="tsv_m", settings=settings, output=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.usefixtures("installed")
def test_a_module_that_was_never_trained_stays_zero(tmp_path: Path) -> None:
    """lora_B of zeros in both: nothing is invented, and the report says it."""
    a = adapter(tmp_path / "a", 4, is_dead=True)
    for method in METHODS:
        report = Session(cache=False).combine([a, a], method=method, output=tmp_path / method)
        rows = {row["module"]: row for row in report.table("modules").rows}
        row = rows["layers.0.q_proj"]
        assert (row["norm"], row["relative_error"]) == (0.0, None)
        assert "zero_delta" in [finding.code for finding in report.findings]


def run(*words: str, site: Path | None) -> subprocess.CompletedProcess[str]:
    folders = [] if site is None else [str(site), lora_lab_subspace.__path__[0].rpartition("/")[0]]
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*folders, root]), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "lora_lab", *words], capture_output=True, text=True, env=environment, check=False
    )


def test_the_command_line(tmp_path: Path, distribution: Callable[[str], Path]) -> None:
    """Listed with its parameters, run with rank and energy, made again, and missed where it is not installed."""
    site = distribution("0.1.0")
    a, b = (adapter(tmp_path / name, rank) for name, rank in (("a", 3), ("b", 5)))
    out = str(tmp_path / "out")
    listed = json.loads(run("methods", "--json", site=site).stdout)["methods"]
    mine = {row["id"]: row for row in listed if row["plugin"] == "subspace"}
    assert list(mine) == list(METHODS)
    assert mine["knots"]["parameters"] == ["inner=linear|ties|dare_linear|dare_ties", "density=0.5"]
    words = ["combine", a, b, "--method", "tsv_m", "--param", "fraction=0.5", "-o", out, "--json"]
    done = run(*words, "--rank", "3", site=site)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plugins"] == {"lora-lab-subspace": "0.1.0"}
    assert {row["rank"] for row in json.loads(done.stdout)["modules"]} == {3}
    by_energy = run(*words, "--energy", "0.6", "--overwrite", site=site)
    assert by_energy.returncode == 0, by_energy.stderr
    rows = json.loads(by_energy.stdout)["modules"]
    assert all(row["relative_error"] ** 2 <= 0.4 + 1e-6 for row in rows)
    again = run("replay", out, "-o", str(tmp_path / "again"), "--json", site=site)
    assert again.returncode == 0, again.stderr
    newer = run("replay", out, "-o", str(tmp_path / "newer"), "--json", site=distribution("0.2.0"))
    assert [warning["code"] for warning in json.loads(newer.stdout)["warnings"]] == ["other_versions"]
    without = run("replay", out, "-o", str(tmp_path / "without"), site=None)
    assert without.returncode == 3
    assert "made with the plugin 'lora-lab-subspace' 0.1.0, which is not installed" in without.stderr
    assert "pip install lora-lab-subspace" in without.stderr
    refused = run("combine", a, "--method", "tsv_m", "--param", "fraction=2", "-o", out, "--overwrite", site=site)
    assert refused.returncode == 2
    assert "fraction is '2.0'" in refused.stderr
