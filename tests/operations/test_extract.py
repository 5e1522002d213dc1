"""A LoRA of a full fine-tune: loaded and merged by PEFT itself, it leaves the error that the receipt states."""

from __future__ import annotations

import json
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from peft import PeftModel
from peft_models import Mixture, Net
from safetensors.torch import load_file, save_file
from storage.faulty import FULL, FaultyDisk, Killed
from torch import nn

from lora_lab import Session
from lora_lab.cli.commands import program
from lora_lab.errors import CancelledError, CompatibilityError, LoraLabError, NumericalError, OperationError
from lora_lab.formats.factors import FactorReader
from lora_lab.operations.extract import extract
from lora_lab.operations.extraction import ExtractOptions
from lora_lab.storage.disk import Disk

TINY: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (
        transformers.GPT2LMHeadModel,
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 12},
    ),
    "bert": (
        transformers.BertForSequenceClassification,
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "vocab_size": 40,
            "max_position_embeddings": 20,
        },
    ),
}


def fine_tuned(state: dict[str, torch.Tensor], *, rank: int = 3) -> dict[str, torch.Tensor]:
    """Every tensor changed, matrices by a rank of `rank` and some noise."""
    generator = torch.Generator().manual_seed(11)
    changed = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            changed[name] = tensor.clone()
            continue
        noise = 0.01 * torch.randn(tensor.shape, generator=generator)
        if tensor.ndim >= 2:
            flat = tensor.flatten(1)
            left, right = (
                torch.randn(flat.shape[0], rank, generator=generator),
                torch.randn(rank, flat.shape[1], generator=generator),
            )
            noise = noise + 0.1 * (left @ right).reshape(tensor.shape)
        changed[name] = tensor + noise.to(tensor.dtype)
    return changed


@pytest.fixture(params=list(TINY))
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Any]:
    """Base and fine-tune of a model of transformers, as it saves them, and its class."""
    kind, settings = TINY[request.param]
    torch.manual_seed(0)
    model = kind(kind.config_class(**settings))
    model.save_pretrained(tmp_path / "base")
    model.load_state_dict(fine_tuned(model.state_dict()))
    model.tie_weights()
    model.save_pretrained(tmp_path / "finetuned")
    return tmp_path / "base", tmp_path / "finetuned", kind


def merged_by_peft(kind: Any, base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied weights, which are meant here
        model = PeftModel.from_pretrained(kind.from_pretrained(base, dtype=torch.float32), str(adapter))
        state: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return state


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(one.double() - other.double()))


def test_the_sample_fine_tune(samples: Path, tmp_path: Path) -> None:
    """Every module's error is the one in the receipt; norms, saved whole, are the fine-tune's own."""
    kind = transformers.AutoModelForCausalLM
    report = Session().extract(
        str(samples / "base"), str(samples / "finetuned-banking77"), output=tmp_path / "out", rank=8, save_others=True
    )
    state = merged_by_peft(kind, samples / "base", tmp_path / "out")
    before, after = (
        kind.from_pretrained(samples / name, dtype=torch.float32).state_dict()
        for name in ("base", "finetuned-banking77")
    )
    rows = {row["module"]: row for row in report.table("modules").rows}
    assert len(rows) == 29
    for name, weight in after.items():
        module = name.removesuffix(".weight")
        if module in rows:
            size = distance(weight, before[name])
            assert rows[module]["update_norm"] == pytest.approx(size, rel=1e-6)
            assert rows[module]["relative_error"] == pytest.approx(distance(weight, state[name]) / size, abs=2e-6)
        elif name != "lm_head.weight":
            assert torch.equal(state[name], weight)
    receipt = json.loads((tmp_path / "out" / "lora_lab_receipt.json").read_text())
    assert receipt["operation"] == "extract"
    assert [record["path"] for record in receipt["inputs"]] == [
        str(samples / "base"),
        str(samples / "finetuned-banking77"),
    ]
    assert receipt["totals"]["relative_error"] == pytest.approx(0.6855, abs=1e-3)  # what intrinsic says of rank 8


def test_energy_takes_the_ranks_that_the_spectrum_says(samples: Path, tmp_path: Path) -> None:
    """The exact spectrum's energy ranks, and one more at most; the error that such a share leaves."""
    session, places = Session(), [str(samples / "base"), str(samples / "finetuned-banking77")]
    only = ["*.self_attn.*", "embed_tokens"]
    report = session.extract(*places, output=tmp_path / "out", energy=0.9, modules=only)
    exact = session.analyze("intrinsic", places, modules=only).table("modules").rows
    for row, known in zip(report.table("modules").rows, exact, strict=True):
        assert known["energy_rank"]["0.9"] <= row["rank"] <= known["energy_rank"]["0.9"] + 1
        assert row["relative_error"] <= 0.1**0.5
        reached = known["reconstruction_error"][row["rank"] - 1]
        assert reached * (1 - 1e-6) <= row["relative_error"] <= reached * (1 + row["excess_bound"]) * (1 + 1e-6)
    written = session.adapter(str(tmp_path / "out"))
    assert {delta.module: delta.rank for delta in written.deltas} == {
        row["module"]: row["rank"] for row in report.table("modules").rows
    }
    assert all(delta.scaling == 1.0 for delta in written.deltas)


def test_all_of_it_gives_the_fine_tune_back(tiny: tuple[Path, Path, Any], tmp_path: Path) -> None:
    """Transposed layers, embeddings, biases, norms, a head: with every direction the weights are the fine-tune's."""
    base, finetuned, kind = tiny
    report = Session().extract(str(base), str(finetuned), output=tmp_path / "out", rank=64, save_others=True)
    assert [finding.code for finding in report.findings if finding.code != "tied_embedding"] == []
    state = merged_by_peft(kind, base, tmp_path / "out")
    for name, weight in kind.from_pretrained(finetuned).state_dict().items():
        torch.testing.assert_close(state[name], weight, rtol=1e-5, atol=1e-5, msg=name)
    ours = Session().merge([str(tmp_path / "out")], base=str(base), output=tmp_path / "merged")
    assert ours.scalars
    for name, weight in load_file(finetuned / "model.safetensors").items():
        torch.testing.assert_close(
            load_file(tmp_path / "merged" / "model.safetensors")[name], weight, rtol=1e-5, atol=1e-5, msg=name
        )


def test_without_others_they_are_named(tiny: tuple[Path, Path, Any], tmp_path: Path) -> None:
    """What changed and is not in the output is told, by number and name."""
    base, finetuned, _ = tiny
    report = Session().extract(str(base), str(finetuned), output=tmp_path / "out", rank=2)
    assert "others_left_out" in [finding.code for finding in report.findings]
    left = next(group.values for group in report.scalars if group.id == "tensors")["left_out"]
    assert any("ln_f" in name or "LayerNorm" in name for name in left)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None
    assert config["bias"] == "none"
    assert config["fan_in_fan_out"] is (config["base_model_name_or_path"] == str(base) and "c_attn" in str(left))


class Convolutions(nn.Module):
    """What PEFT flattens."""

    def __init__(self) -> None:
        super().__init__()
        block = Net().layers["2"]
        self.conv, self.point, self.line, self.q_proj = block.conv, block.point, block.line, block.q_proj
        self.grouped = nn.Conv2d(4, 4, 3, groups=4)
        self.token = nn.Parameter(torch.randn(1, 5, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def saved(folder: Path, state: dict[str, torch.Tensor], **config: Any) -> str:
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "test", **config}))
    return str(folder)


def test_convolutions(tmp_path: Path) -> None:
    """Kernels come back in PEFT's shapes; one in groups and a bare parameter are named, not lost in silence."""
    torch.manual_seed(0)
    net = Convolutions()
    after = fine_tuned(net.state_dict())
    base = saved(tmp_path / "base", net.state_dict())
    report = Session().extract(base, saved(tmp_path / "ft", after), output=tmp_path / "out", rank=64, save_others=True)
    state = PeftModel.from_pretrained(net, str(tmp_path / "out")).merge_and_unload().state_dict()
    for name in ("conv", "point", "line", "q_proj"):
        torch.testing.assert_close(state[f"{name}.weight"], after[f"{name}.weight"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state[f"{name}.bias"], after[f"{name}.bias"])
    told = next(finding.message for finding in report.findings if finding.code == "not_extractable")
    assert "grouped" in told
    assert "token" in told


@pytest.fixture
def pair(tmp_path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    before = {
        "model.embed_tokens.weight": torch.randn(30, 12, generator=generator),
        "model.layers.0.q_proj.weight": torch.randn(20, 12, generator=generator),
        "model.layers.0.k_proj.weight": torch.randn(8, 12, generator=generator),
        "model.norm.weight": torch.ones(12),
    }
    return before, fine_tuned(before)


def test_a_resized_vocabulary_is_told_apart(tmp_path: Path, pair: Any) -> None:
    """Saved whole on request, never cut to what both have."""
    before, after = pair
    after["model.embed_tokens.weight"] = torch.cat([after["model.embed_tokens.weight"], torch.randn(2, 12)])
    places = saved(tmp_path / "base", before), saved(tmp_path / "ft", after)
    report = Session().extract(*places, output=tmp_path / "out", rank=4, save_others=True)
    assert next(finding for finding in report.findings if finding.code == "vocabulary_resized").message.count(
        "32 in the fine-tune"
    )
    whole = load_file(tmp_path / "out" / "adapter_model.safetensors")["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(whole, after["model.embed_tokens.weight"])
    assert "model.embed_tokens" not in [row["module"] for row in report.table("modules").rows]
    less = Session().extract(*places, output=tmp_path / "less", rank=4)
    said = next(finding.message for finding in less.findings if finding.code == "vocabulary_resized")
    assert "keeps its size, without the new rows" in said


def test_what_did_not_change_is_skipped_by_name(tmp_path: Path, pair: Any) -> None:
    """And where nothing did, there is nothing to write."""
    before, after = pair
    after["model.layers.0.k_proj.weight"] = before["model.layers.0.k_proj.weight"]
    after["model.norm.weight"] = before["model.norm.weight"]
    base = saved(tmp_path / "base", before)
    report = Session().extract(base, saved(tmp_path / "ft", after), output=tmp_path / "out", save_others=True)
    names = next(group.values for group in report.scalars if group.id == "tensors")
    assert names["unchanged"] == ["model.layers.0.k_proj", "model.norm"]
    assert {row["module"] for row in report.table("modules").rows} == {"model.embed_tokens", "model.layers.0.q_proj"}
    with pytest.raises(CompatibilityError, match="hold the same matrices"):
        Session().extract(base, saved(tmp_path / "same", before), output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_error_is_that_of_the_rounded_factors(tmp_path: Path, pair: Any) -> None:
    """In bfloat16 it is larger, and stated so."""
    before, after = pair
    places = saved(tmp_path / "base", before), saved(tmp_path / "ft", after)
    found = {}
    for dtype in ("float32", "bfloat16"):
        report = Session().extract(*places, output=tmp_path / dtype, rank=64, dtype=dtype)
        row = next(row for row in report.table("modules").rows if row["module"].endswith("q_proj"))
        tensors = load_file(tmp_path / dtype / "adapter_model.safetensors")
        lora_A, lora_B = (
            tensors[f"base_model.model.{row['module']}.lora_{part}.weight"].double() for part in ("A", "B")
        )
        update = after[f"{row['module']}.weight"].double() - before[f"{row['module']}.weight"].double()
        real = distance(lora_B @ lora_A, update) / float(torch.linalg.vector_norm(update))
        assert row["relative_error"] == pytest.approx(real, rel=1e-6, abs=1e-12)
        found[dtype] = real
    assert found["float32"] < 1e-6 < 1e-4 < found["bfloat16"] < 2**-7


def test_the_same_bytes_again(tmp_path: Path, pair: Any) -> None:
    """The receipt's hashes do not depend on the run; the seed may change the last digits only."""
    places = saved(tmp_path / "base", pair[0]), saved(tmp_path / "ft", pair[1])
    digests = [
        [row["sha256"] for row in Session().extract(*places, output=tmp_path / name).table("outputs").rows]
        for name in ("one", "two")
    ]
    assert digests[0] == digests[1]


def test_refusals_leave_nothing(tmp_path: Path, pair: Any) -> None:
    """Each in one sentence, and nothing is written."""
    before, after = pair
    base, finetuned = saved(tmp_path / "base", before), saved(tmp_path / "ft", after)
    broken = dict(after)
    broken["model.layers.0.q_proj.weight"] = after["model.layers.0.q_proj.weight"].clone()
    broken["model.layers.0.q_proj.weight"][3, 3] = float("nan")
    wrong = saved(tmp_path / "nan", broken)
    other = saved(tmp_path / "other", {"h.0.weight": torch.ones(3, 4)})
    session, out = Session(), tmp_path / "out"
    with pytest.raises(NumericalError, match=r"model\.layers\.0\.q_proj.*NaN"):
        session.extract(base, wrong, output=out)
    with pytest.raises(CompatibilityError, match="no matrix in common"):
        session.extract(base, other, output=out)
    with pytest.raises(LoraLabError, match="No matrix matches"):
        session.extract(base, finetuned, output=out, modules=["nothing"])
    with pytest.raises(LoraLabError, match="rank is 0"):
        session.extract(base, finetuned, output=out, rank=0)
    with pytest.raises(LoraLabError, match=r"energy is 1\.5"):
        session.extract(base, finetuned, output=out, energy=1.5)
    assert not out.exists()
    foretold = session.extract(base, finetuned, output=out, dry_run=True)
    assert foretold.table("modules").rows
    assert not out.exists()
    out.mkdir()
    with pytest.raises(OperationError, match="exists already"):
        session.extract(base, finetuned, output=out)
    session.extract(base, finetuned, output=out, overwrite=True)
    sizes = {row["path"]: row["size_bytes"] for row in foretold.table("outputs").rows}
    assert sizes == {name: (out / name).stat().st_size for name in sizes}
    assert {"adapter_config.json", "adapter_model.safetensors"} == set(sizes)


class Impatient:
    """Wants it no longer after the first matrix."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def advance(self, done: int, total: int, what: str = "") -> None:
        self.seen.append((done, total))

    def rows(self, table: str, rows: Any) -> None:
        pass

    def is_cancelled(self) -> bool:
        return bool(self.seen)


def test_cancelled(tmp_path: Path, pair: Any) -> None:
    """At the next matrix, with nothing left behind."""
    watcher = Impatient()
    places = saved(tmp_path / "base", pair[0]), saved(tmp_path / "ft", pair[1])
    with pytest.raises(CancelledError):
        Session().extract(*places, output=tmp_path / "out", observer=watcher)
    assert 0 < watcher.seen[0][0] < watcher.seen[0][1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "ft"]


def test_the_command(tmp_path: Path, pair: Any) -> None:
    """The same digits as JSON."""
    places = saved(tmp_path / "base", pair[0]), saved(tmp_path / "ft", pair[1])
    told = CliRunner().invoke(program, ["extract", *places, "--rank", "2", "-o", str(tmp_path / "out"), "--json"])
    document = json.loads(told.stdout)
    assert document["command"] == "extract"
    assert document == json.loads((tmp_path / "out" / "lora_lab_receipt.json").read_text())
    assert [row["rank"] for row in document["modules"]] == [2, 2, 2]


def test_replay(tmp_path: Path, pair: Any) -> None:
    """The receipt is enough for the same bytes."""
    places = saved(tmp_path / "base", pair[0]), saved(tmp_path / "ft", pair[1])
    Session(seed=5).extract(*places, output=tmp_path / "out", energy=0.95, save_others=True, dtype="bfloat16")
    again = Session().replay(tmp_path / "out", output=tmp_path / "again")
    assert again.verdict is True
    assert len(again.table("files").rows) == 2


def test_experts_and_numbers_without_a_module_are_told_where_they_changed(tmp_path: Path, pair: Any) -> None:
    """Experts of which nobody knows how PEFT nests them, by name, once; what stayed as it was is nobody's concern."""
    before, after = pair
    for name, shape in {"experts.w1": (4, 6, 12), "experts.w3": (4, 6, 12), "scale": ()}.items():
        before[name] = torch.ones(shape)
        after[name] = before[name].clone()
    after["experts.w1"][3, 5, 11] += 1
    before["positions.ids"] = after["positions.ids"] = torch.arange(4)
    before["counts"], after["counts"] = torch.arange(4), torch.ones(4).long()
    places = saved(tmp_path / "base", before), saved(tmp_path / "ft", after)
    report = Session().extract(*places, output=tmp_path / "out", rank=2, save_others=True)
    told = next(finding.message for finding in report.findings if finding.code == "not_extractable")
    assert told.count("experts.w1") == 1
    assert "w3" not in told
    assert "scale" not in told
    assert "positions" not in told
    assert "counts" in told


@pytest.mark.parametrize("code", [0, FULL], ids=["killed", "disk full"])
def test_a_fault_at_every_call_of_the_disk(tmp_path: Path, pair: Any, code: int) -> None:
    """Afterwards the output is absent or complete, and the same command gives the same bytes."""
    session = Session()
    base, finetuned = session.base(saved(tmp_path / "base", pair[0])), session.base(saved(tmp_path / "ft", pair[1]))

    def run(output: Path, disk: Disk) -> None:
        extract(base, finetuned, output, reader=FactorReader(), options=ExtractOptions(rank=2), disk=disk)

    run(tmp_path / "right", Disk())
    right = contents(tmp_path / "right")
    counting = FaultyDisk()
    run(tmp_path / "counted", counting)
    for at in range(counting.calls):
        place = tmp_path / f"{at}" / "out"
        place.parent.mkdir()
        with suppress(Killed, OSError, LoraLabError):
            run(place, FaultyDisk(at, code, is_losing=code == 0))
        if not place.exists():
            with suppress(OperationError):  # one that was interrupted when it only lacked its name is given it
                run(place, Disk())
        assert contents(place) == right


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lora_lab_receipt.json"}


@pytest.mark.parametrize("changed", [["gate_up_proj", "down_proj"], ["down_proj"]])
@pytest.mark.parametrize("cut", [{"rank": 40}, {"rank": 2}, {"energy": 0.9}], ids=str)
def test_experts(tmp_path: Path, changed: list[str], cut: dict[str, Any]) -> None:
    """Each expert by itself, packed and nested as PEFT reads them; the error told is what PEFT's merge leaves."""
    torch.manual_seed(3)
    before = Mixture().state_dict()
    generator = torch.Generator().manual_seed(1)
    after = {name: tensor.clone() for name, tensor in before.items()}
    for name in changed:
        shape = after[f"experts.{name}"][1:].shape  # the first expert stays as it is
        after[f"experts.{name}"][1:] += 0.1 * torch.randn(shape, generator=generator)
    places = saved(tmp_path / "base", before), saved(tmp_path / "ft", after)
    report = Session().extract(*places, output=tmp_path / "out", **cut)
    torch.manual_seed(3)
    merged = PeftModel.from_pretrained(Mixture(), str(tmp_path / "out")).merge_and_unload().state_dict()
    rows = {row["module"]: row for row in report.table("modules").rows}
    assert len(rows) == 4 * len(changed)
    for name in changed:
        assert torch.equal(merged[f"experts.{name}"][0], before[f"experts.{name}"][0])
        for expert in range(1, 5):
            size = distance(after[f"experts.{name}"][expert], before[f"experts.{name}"][expert])
            left = distance(after[f"experts.{name}"][expert], merged[f"experts.{name}"][expert])
            row = rows[f"experts.{name}[{expert}]"]
            assert row["relative_error"] == pytest.approx(left / size, abs=2e-6)
            assert row["rank"] <= cut.get("rank", 8)
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    totals = next(group.values for group in report.scalars if group.id == "totals")
    assert totals["parameters"] == sum(tensor.numel() for tensor in weights.values())


class Looking(FactorReader):
    """Notes how much is asked for at once."""

    most = 0

    @contextmanager
    def rows_of(self, ref: Any) -> Any:
        with super().rows_of(ref) as rows:

            def seen(first: int, end: int) -> torch.Tensor:
                block = rows(first, end)
                self.most = max(self.most, block.numel())
                return block

            yield seen

    def tensor(self, ref: Any) -> torch.Tensor:
        raise AssertionError(f"{ref.name} was read whole")


@pytest.mark.parametrize("spectrum", ["flat", "trained"])
def test_within_a_hundredth_of_the_exact_optimum_and_in_blocks(tmp_path: Path, spectrum: str) -> None:
    """Against the dense SVD of the difference, by the bound that is told; never more than a block of rows at once."""
    generator = torch.Generator().manual_seed(8)
    before = {"a.weight": torch.randn(700, 900, generator=generator)}
    change = torch.randn(700, 900, generator=generator)
    if spectrum == "trained":  # some directions above a bulk
        change = 0.02 * change + torch.randn(700, 6, generator=generator) @ torch.randn(6, 900, generator=generator)
    after = {"a.weight": before["a.weight"] + 0.01 * change}
    places = [Session().base(saved(tmp_path / name, one)) for name, one in (("base", before), ("ft", after))]
    reader = Looking()
    report = extract(*places, tmp_path / "out", reader=reader, options=ExtractOptions(rank=8), dry_run=True)
    (row,) = report.table("modules").rows
    exact = torch.linalg.svdvals(after["a.weight"].double() - before["a.weight"].double())
    optimum = float(exact[8:].norm() / exact.norm())
    assert row["excess_bound"] <= 0.01
    assert optimum * (1 - 1e-6) <= row["relative_error"] <= optimum * min(1.01, 1 + row["excess_bound"]) + 1e-6
    assert reader.most <= 1 << 19 < 700 * 900
