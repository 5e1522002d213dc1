"""What a merged model is: right ones by whoever made them, wrong ones by name, and what nothing can be said of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from builders import delta_of, factors, write_adapter
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft_models import Mixture, Net
from safetensors.torch import load_file, save_file
from torch import nn

from lora_lab import Session
from lora_lab.domain.progress import Unwatched
from lora_lab.domain.report import Report
from lora_lab.errors import CancelledError, CompatibilityError, FileFormatError

SHAPES: Final = {
    "model.layers.2.self_attn.q_proj": (96, 96),
    "model.layers.10.self_attn.q_proj": (96, 96),
    "model.layers.2.self_attn.v_proj": (48, 96),
}
Q2, Q10, V2 = SHAPES
DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
Tensors = dict[str, torch.Tensor]


def session() -> Session:
    return Session(cache=False)


def base_tensors(dtype: torch.dtype, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"{module}.weight": 0.05 * torch.randn(shape, generator=generator) for module, shape in SHAPES.items()}
    tensors["model.embed_tokens.weight"] = torch.randn((40, 96), generator=generator)
    tensors["model.norm.weight"] = torch.ones(96)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def write_model(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """Two shards, so that one can be an old one."""
    folder.mkdir(parents=True)
    names = sorted(tensors)
    files = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, own in files.items():
        save_file({name: tensors[name].contiguous() for name in own}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in files.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


def small_factors(seed: int = 0, size: float = 0.1) -> Tensors:
    """Factors whose update is about a tenth of the weights, with shapes of this file's models."""
    return {name: size * tensor for name, tensor in factors(SHAPES, seed=seed).items()}


def tensors_of(folder: Path) -> Tensors:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base", base_tensors(torch.bfloat16))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", small_factors())


@pytest.fixture
def merged(tmp_path: Path, base: Path, adapter: Path) -> Path:
    session().merge([str(adapter)], base=str(base), output=tmp_path / "merged")
    return tmp_path / "merged"


def verify(model: Path, base: Path | None = None, *adapters: Path, **how: Any) -> Report:
    return session().verify(
        str(model), base=None if base is None else str(base), adapters=[str(one) for one in adapters], **how
    )


def said(report: Report) -> dict[str, Any]:
    return dict(report.scalars[0].values)


def diagnoses(report: Report) -> dict[str, str]:
    return {row["module"]: row["diagnosis"] for row in report.table("modules").rows}


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


def changed(folder: Path, output: Path, change: Callable[[Tensors], None]) -> Path:
    """The same model without a receipt, after `change`."""
    tensors = tensors_of(folder)
    change(tensors)
    return write_model(output, tensors)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_merge_of_ours_is_proven(dtype: str, rounding: str, tmp_path: Path, adapter: Path) -> None:
    """By its receipt alone, by base and adapter, and by these without a receipt."""
    base = write_model(tmp_path / "base", base_tensors(DTYPES[dtype]))
    out = tmp_path / "out"
    Session(cache=False, seed=3).merge([str(adapter)], base=str(base), output=out, rounding=rounding, strengths=[0.7])
    alone = verify(out)
    assert said(alone) == {
        "ok": True, "established": True, "diagnosis": "right", "hashes": True, "arithmetic": None, "untouched": None,
    }  # fmt: skip
    report = verify(out, base, adapter)
    assert said(report) | {"hashes": True, "arithmetic": True, "untouched": 2} == said(report)
    assert (report.verdict, report.findings) == (True, ())
    assert [row["module"] for row in report.table("modules").rows] == [Q2, V2, Q10]
    for row in report.table("modules").rows:
        assert (row["diagnosis"], row["strength"], row["differing_fraction"]) == ("right", 1.0, 0.0)
        assert row["worst_ulp"] is None
    (out / "lora_lab_receipt.json").unlink()
    blind = verify(out, base, adapter, strengths=[0.7])
    assert (blind.verdict, said(blind)["hashes"]) == (True, None)
    assert set(diagnoses(blind).values()) == {"right" if rounding == "nearest" else "rounded_elsewhere"}


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(list(DTYPES)),
    st.integers(0, 99),
    st.floats(-3, 3).filter(lambda strength: abs(strength) > 0.05),
    st.sampled_from([0.003, 0.03, 0.3]),
    st.sampled_from([None, "float32", "bfloat16"]),
)
def test_no_right_merge_is_refuted(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, seed: int, strength: float, size: float, into: str | None
) -> None:
    """Whatever the type, the adapter, its size, its strength and the type that is written."""
    folder = tmp_path_factory.mktemp("right")
    base = write_model(folder / "base", base_tensors(DTYPES[dtype], seed))
    adapter = write_adapter(folder / "adapter", small_factors(seed + 100, size))
    session().merge([str(adapter)], base=str(base), output=folder / "out", strengths=[strength], dtype=into)
    assert verify(folder / "out", base, adapter).verdict is True
    (folder / "out" / "lora_lab_receipt.json").unlink()
    report = verify(folder / "out", base, adapter, strengths=[strength])
    assert report.verdict is not False, report.findings
    assert report.verdict is True or size == 0.003


def peft_merge(folder: Path, network: type[nn.Module], dtype: torch.dtype, **more: Any) -> tuple[Path, Path, Path]:
    """A base, an adapter as PEFT saves it, and what PEFT's own merge makes of both in the base's type."""
    torch.manual_seed(3)
    net = network().to(dtype)
    base, out = folder / "base", folder / "out"
    for place in (base, out):
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps({"model_type": "test"}))
    save_file({name: tensor.clone() for name, tensor in net.state_dict().items()}, base / "model.safetensors")
    model = get_peft_model(net, LoraConfig(**{"r": 4, "lora_alpha": 6, **more}), autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or "lora_" in name:
            noise = 0.1 * torch.randn(parameter.shape)
            parameter.data.add_((noise.abs() if "magnitude" in name else noise).to(parameter.dtype))
    model.save_pretrained(folder / "adapter")
    whole = model.merge_and_unload().state_dict()
    save_file({name: tensor.clone().contiguous() for name, tensor in whole.items()}, out / "model.safetensors")
    return base, folder / "adapter", out


PEFT: Final[dict[str, dict[str, Any]]] = {
    "linear": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
    "fan_in_fan_out": {"target_modules": ["c_attn"], "fan_in_fan_out": True},
    "convolutions": {"target_modules": ["conv", "line"]},
    "embedding": {"target_modules": ["embed"]},
    "saved modules": {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed": [7, 2]}},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("kind", list(PEFT))
def test_what_peft_merges_is_sound(kind: str, dtype: str, tmp_path: Path) -> None:
    """Its arithmetic in the base's own type rounds more than once, which is no fault; the wrong α is one."""
    base, adapter, out = peft_merge(tmp_path, Net, DTYPES[dtype], **PEFT[kind])
    report = verify(out, base, adapter)
    assert report.verdict is True, report.findings
    assert set(diagnoses(report).values()) <= {"right", "rounded_elsewhere"}
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 12}))
    assert verify(out, base, adapter).verdict is False


@pytest.mark.filterwarnings("ignore")
def test_experts_that_peft_merges_are_sound(tmp_path: Path) -> None:
    """Every expert has its own update; one expert left out is told."""
    targets = ["experts.gate_up_proj"]
    base, adapter, out = peft_merge(tmp_path, Mixture, torch.bfloat16, target_modules=[], target_parameters=targets)
    assert verify(out, base, adapter).verdict is True
    tensors, before = tensors_of(out), tensors_of(base)
    tensors["experts.gate_up_proj"][2] = before["experts.gate_up_proj"][2]
    save_file(tensors, out / "model.safetensors")
    report = verify(out, base, adapter)
    assert report.verdict is False
    assert diagnoses(report)["experts.gate_up_proj"] == "partly_merged"


def test_one_shard_of_the_base(merged: Path, base: Path, adapter: Path, tmp_path: Path) -> None:
    """An upload that replaced one file only: by hash with the receipt, by arithmetic without."""
    for copy in ("receipt", "none"):
        shutil.copytree(merged, tmp_path / copy)
        shutil.copy(base / "model-00001-of-00002.safetensors", tmp_path / copy)
    hashed = verify(tmp_path / "receipt")
    assert (hashed.verdict, said(hashed)["diagnosis"]) == (False, "other_hash")
    assert "model-00001-of-00002.safetensors" in hashed.findings[0].message
    (tmp_path / "none" / "lora_lab_receipt.json").unlink()
    report = verify(tmp_path / "none", base, adapter)
    assert (report.verdict, said(report)["diagnosis"]) == (False, "partly_merged")
    assert set(diagnoses(report).values()) == {"right", "not_applied"}
    (finding,) = report.findings
    assert finding.code == "not_applied"
    missing = [row["tensor"] for row in report.table("modules").rows if row["diagnosis"] == "not_applied"]
    assert all(name in finding.message for name in missing)


def test_modules_left_out(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A merge of one module proves that module when asked for it, and is partly merged when all are."""
    session().merge([str(adapter)], base=str(base), output=tmp_path / "out", modules=["*v_proj"])
    assert verify(tmp_path / "out", base, adapter).verdict is True  # the receipt says which
    (tmp_path / "out" / "lora_lab_receipt.json").unlink()
    assert verify(tmp_path / "out", base, adapter, modules=["*v_proj"]).verdict is True
    report = verify(tmp_path / "out", base, adapter)
    assert said(report)["diagnosis"] == "partly_merged"
    assert diagnoses(report) == {Q2: "not_applied", V2: "right", Q10: "not_applied"}


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_the_wrong_scaling_is_estimated(dtype: str, tmp_path: Path, adapter: Path) -> None:
    """alpha/√r in place of alpha/r is twice the strength at rank 4; the error holds it, and the finding says it."""
    base = write_model(tmp_path / "base", base_tensors(DTYPES[dtype]))
    other = write_adapter(tmp_path / "rslora", small_factors(), use_rslora=True)
    session().merge([str(other)], base=str(base), output=tmp_path / "out")
    report = verify(tmp_path / "out", base, adapter)
    assert (report.verdict, said(report)["diagnosis"]) == (False, "wrong_strength")
    assert codes(report) == {"other_inputs", "wrong_strength"}
    for row in report.table("modules").rows:
        assert abs(row["strength"] - 2) <= max(5 * row["strength_error"], 1e-3)
        assert row["detail"].startswith("strength 2.0")
    half = verify(tmp_path / "out", base, other, strengths=[0.5])
    assert half.verdict is False
    assert all(row["strength"] == pytest.approx(2, rel=2e-3) for row in half.table("modules").rows)


def test_wrong_updates_by_name(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Transposed, subtracted, of another seed, or noise in one tensor only: the others stay right."""
    before = tensors_of(base)
    delta = {module: delta_of(small_factors(), module, 2.0) for module in SHAPES}
    other = {module: delta_of(small_factors(7), module, 2.0) for module in SHAPES}
    noise = 0.02 * torch.randn((96, 96), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cases = {
        "right": delta[Q2],
        "transposed": delta[Q2].T,
        "sign_flipped": -delta[Q2],
        "other_adapter": other[Q2],
        "noise": delta[Q2] + noise,
    }
    for name, step in cases.items():
        tensors = dict(before)
        for module in SHAPES:
            own = step if module == Q2 else delta[module]
            tensors[f"{module}.weight"] = (before[f"{module}.weight"].double() + own).bfloat16()
        report = verify(write_model(tmp_path / name, tensors), base, adapter)
        expected = "other_adapter" if name == "noise" else name
        assert diagnoses(report) == {Q2: expected, V2: "right", Q10: "right"}
        assert (report.verdict, said(report)["diagnosis"]) == (name == "right", expected)
        if name != "right":
            assert [finding.module for finding in report.findings] == [Q2]


def test_the_second_of_two_adapters_is_missing(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Which of the adapters is in it is told by name; both together are right."""
    second = write_adapter(tmp_path / "second", small_factors(8), alpha=12)
    session().merge([str(adapter)], base=str(base), output=tmp_path / "one")
    session().merge([str(adapter), str(second)], base=str(base), output=tmp_path / "both", strengths=[1, -0.5])
    assert verify(tmp_path / "both", base, adapter, second).verdict is True
    report = verify(tmp_path / "one", base, adapter, second)
    assert said(report)["diagnosis"] == "partly_merged"
    details = {row["detail"] for row in report.table("modules").rows}
    assert details == {"'adapter' is in it, 'second' is not in it"}


@pytest.mark.parametrize("bit", [0, 7, 14])
def test_a_flipped_bit(merged: Path, base: Path, adapter: Path, bit: int) -> None:
    """In a changed weight, by hash and by arithmetic, however low the bit."""
    path = next(path for path in sorted(merged.glob("*.safetensors")) if f"{Q2}.weight" in load_file(path))
    tensors = load_file(path)
    tensors[f"{Q2}.weight"].view(torch.int16)[5, 6] ^= 1 << bit
    save_file(tensors, path, metadata={"format": "pt"})
    report = verify(merged, base, adapter)
    assert said(report) | {"ok": False, "hashes": False, "arithmetic": False} == said(report)
    assert [row["path"] for row in report.table("files").rows if not row["ok"]] == [path.name]
    found = diagnoses(report)
    assert (found[V2], found[Q10]) == ("right", "right")
    assert found[Q2] in {0: {"rounded_elsewhere"}, 7: {"wrong_values"}, 14: {"wrong_values", "not_finite"}}[bit]


def test_files_against_the_receipt(merged: Path) -> None:
    """A file that is missing, one that is other, and one that is extra."""
    (merged / "config.json").unlink()
    report = verify(merged)
    assert (report.verdict, said(report)["diagnosis"]) == (False, "other_hash")
    (row,) = [row for row in report.table("files").rows if not row["ok"]]
    assert (row["path"], row["sha256"]) == ("config.json", None)
    assert "A file is not as the receipt says, of 4: 'config.json' (missing)" in report.findings[0].message
    (merged / "config.json").write_text("{}")
    assert verify(merged).verdict is False


def test_a_file_that_the_receipt_does_not_know(merged: Path) -> None:
    """Beside a sound model it is told; in its index it is part of the model, and wrong."""
    (merged / "notes.txt").write_text("mine")
    report = verify(merged)
    assert (report.verdict, codes(report)) == (True, {"not_in_receipt"})
    assert "'notes.txt'" in report.findings[0].message
    (merged / "sub").mkdir()
    (merged / "sub" / "more.bin").write_bytes(b"mine")
    (merged / "elsewhere").symlink_to("/", target_is_directory=True)
    report = verify(merged)
    assert (report.verdict, codes(report)) == (True, {"not_in_receipt"})
    assert "2 files are beside the model" in report.findings[0].message
    assert "'sub/more.bin'" in report.findings[0].message
    save_file({"extra": torch.ones(2)}, merged / "more.safetensors")
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    index["weight_map"]["extra"] = "more.safetensors"
    (merged / "model.safetensors.index.json").write_text(json.dumps(index))
    wrong = [row["path"] for row in verify(merged).table("files").rows if not row["ok"]]
    assert sorted(wrong) == ["model.safetensors.index.json", "more.safetensors"]


def test_tensors_that_no_adapter_changes(merged: Path, base: Path, adapter: Path, tmp_path: Path) -> None:
    """One value changed, a tensor missing, one too many, one of another shape: each under its name."""

    def touch(tensors: Tensors) -> None:
        tensors["model.norm.weight"][3] = 1.5

    def shorten(tensors: Tensors) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:39]

    changes: dict[str, tuple[str, Callable[[Tensors], Any]]] = {
        "changed_untouched": ("model.norm", touch),
        "missing_tensor": ("model.norm", lambda tensors: tensors.pop("model.norm.weight")),
        "added_tensor": ("model.more", lambda tensors: tensors.update({"model.more.weight": torch.ones(3)})),
        "other_shape": ("model.embed_tokens", shorten),
    }
    for code, (module, change) in changes.items():
        report = verify(changed(merged, tmp_path / code, change), base, adapter)
        assert (report.verdict, said(report)["diagnosis"]) == (False, code)
        assert diagnoses(report) == {Q2: "right", V2: "right", Q10: "right", module: code}
        assert codes(report) == {code}


@pytest.mark.parametrize("prefix", [("model.", "base.model."), ("model.", "")])
def test_another_prefix_of_all_names(
    prefix: tuple[str, str], merged: Path, base: Path, adapter: Path, tmp_path: Path
) -> None:
    """A task model's file says more, a bare model's less; the tensors are the same."""
    before, after = prefix
    tensors = {after + name.removeprefix(before): tensor for name, tensor in tensors_of(merged).items()}
    report = verify(write_model(tmp_path / "moved", tensors), base, adapter)
    assert (report.verdict, set(diagnoses(report).values())) == (True, {"right"})


@pytest.mark.parametrize("is_right", [True, False])
def test_tied_heads(is_right: bool, tmp_path: Path, adapter: Path) -> None:
    """A saver writes the shared tensor once more, or once less; a head that is another one is wrong."""
    tensors = base_tensors(torch.bfloat16)
    base = write_model(tmp_path / "base", tensors, tie_word_embeddings=True)
    session().merge([str(adapter)], base=str(base), output=tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    after["lm_head.weight"] = after["model.embed_tokens.weight"].clone()
    if not is_right:
        after["lm_head.weight"][0, 0] += 1
    report = verify(write_model(tmp_path / "twice", after, tie_word_embeddings=True), base, adapter)
    assert report.verdict is is_right
    assert is_right or diagnoses(report)["lm_head"] == "added_tensor"
    once = verify(tmp_path / "out", write_model(tmp_path / "both", {**tensors, "lm_head.weight": tensors[
        "model.embed_tokens.weight"].clone()}, tie_word_embeddings=True), adapter)  # fmt: skip
    assert once.verdict is True


def test_nothing_to_compare_with(base: Path) -> None:
    """No receipt, no base: not established, and what would help."""
    report = verify(base)
    assert said(report) | {"ok": None, "established": False, "hashes": None, "arithmetic": None} == said(report)
    assert (report.verdict, codes(report)) == (None, {"nothing_to_compare"})
    assert "--base" in report.findings[0].message


def test_an_update_that_the_type_swallows(tmp_path: Path) -> None:
    """In bf16 the merge is the base; it proves nothing of the adapter, and float32 does."""
    tensors = {name: torch.ones_like(tensor) for name, tensor in base_tensors(torch.bfloat16).items()}
    base = write_model(tmp_path / "base", tensors)
    adapter = write_adapter(tmp_path / "tiny", small_factors(size=1e-3))
    session().merge([str(adapter)], base=str(base), output=tmp_path / "out")
    report = verify(tmp_path / "out", base, adapter)
    assert said(report) | {"ok": None, "established": False, "hashes": True, "arithmetic": None} == said(report)
    assert (report.verdict, codes(report)) == (None, {"inconclusive"})
    session().merge([str(adapter)], base=str(base), output=tmp_path / "wide", dtype="float32")
    assert verify(tmp_path / "wide", base, adapter).verdict is True


def test_a_base_without_adapters(base: Path, merged: Path, tmp_path: Path) -> None:
    """Without a receipt to name any, the model is then to be the base itself: a copy is, a merge is not."""
    shutil.copytree(base, tmp_path / "copy")
    assert verify(tmp_path / "copy", base).verdict is True
    (merged / "lora_lab_receipt.json").unlink()
    report = verify(merged, base)
    assert (report.verdict, said(report)["arithmetic"]) == (False, False)
    assert set(diagnoses(report).values()) == {"changed_untouched"}


def test_what_is_refused(base: Path, adapter: Path, merged: Path, tmp_path: Path) -> None:
    """Adapters without a base, a model of other tensors, a receipt that leads out of the folder or is damaged."""
    with pytest.raises(CompatibilityError, match="no base to add them to"):
        verify(merged, None, adapter)
    other = write_model(tmp_path / "other", {"h.0.weight": torch.ones(3, 3), "h.1.weight": torch.ones(3, 3)})
    with pytest.raises(CompatibilityError, match="has no tensor of 'base'"):
        verify(other, base, adapter)
    receipt = merged / "lora_lab_receipt.json"
    document = json.loads(receipt.read_text())
    document["outputs"][0]["path"] = "../base/config.json"
    receipt.write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match=r"\.\./base/config\.json"):
        verify(merged)
    receipt.write_text("{")
    with pytest.raises(FileFormatError, match="lora_lab_receipt"):
        verify(merged)


def test_it_is_stopped(base: Path, adapter: Path, merged: Path) -> None:
    """Whoever no longer wants the answer gets none."""

    class Gone(Unwatched):
        def is_cancelled(self) -> bool:
            return True

    with pytest.raises(CancelledError):
        session().verify(str(merged), base=str(base), adapters=[str(adapter)], observer=Gone())


@pytest.mark.parametrize("threads", [1, 4])
def test_figures_do_not_depend_on_threads(
    threads: int, base: Path, adapter: Path, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sums in the same order, however many work on them."""
    first = verify(merged, base, adapter, strengths=[0.9]).table("modules").rows
    monkeypatch.setattr("lora_lab.operations.arithmetic.worker_count", lambda: threads)
    assert verify(merged, base, adapter, strengths=[0.9]).table("modules").rows == first


class TestReceiptNamesTheAdapters:
    """With a base and a receipt, the adapters need not be given again."""

    def test_they_are_found_where_they_were(self, merged: Path, base: Path) -> None:
        report = verify(merged, base)
        assert said(report) | {"ok": True, "hashes": True, "arithmetic": True, "untouched": 2} == said(report)
        assert set(diagnoses(report).values()) == {"right"}
        assert [Path(record.locator).name for record in report.inputs] == ["adapter", "merged", "base"]

    def test_from_another_folder(self, tmp_path: Path, base: Path, adapter: Path, monkeypatch: Any) -> None:
        """A locator that was relative then is looked for by its path, though another adapter has its name here."""
        monkeypatch.chdir(tmp_path)
        session().merge(["adapter"], base="base", output="out", strengths=[0.5])
        elsewhere = tmp_path / "elsewhere"
        write_adapter(elsewhere / "adapter", small_factors(9))
        monkeypatch.chdir(elsewhere)
        assert verify(tmp_path / "out", base).verdict is True

    def test_alpha_that_a_person_said(self, tmp_path: Path, base: Path, adapter: Path) -> None:
        """What was said for opening an adapter stands in the receipt."""
        document = json.loads((adapter / "adapter_config.json").read_text())
        del document["lora_alpha"]
        (adapter / "adapter_config.json").write_text(json.dumps(document))
        Session(cache=False, alpha=12).merge([str(adapter)], base=str(base), output=tmp_path / "out")
        assert verify(tmp_path / "out", base).verdict is True

    def test_a_wrong_tensor_is_found_all_the_same(self, merged: Path, base: Path) -> None:
        path = next(path for path in sorted(merged.glob("*.safetensors")) if f"{Q2}.weight" in load_file(path))
        tensors = load_file(path)
        tensors[f"{Q2}.weight"].view(torch.int16)[5, 6] ^= 1
        save_file(tensors, path, metadata={"format": "pt"})
        report = verify(merged, base)
        assert said(report) | {"ok": False, "hashes": False, "arithmetic": False} == said(report)

    @pytest.mark.parametrize("what", ["gone", "changed"])
    def test_one_that_is_not_what_it_was(self, what: str, merged: Path, base: Path, adapter: Path) -> None:
        """The rest is checked, and what could not be established is named; that is no yes."""
        if what == "gone":
            adapter.rename(adapter.with_name("away"))
        else:
            write_adapter(adapter, small_factors(9))
        report = verify(merged, base)
        assert report.verdict is None
        assert said(report) | {"hashes": True, "arithmetic": None, "established": False, "untouched": 2} == said(report)
        (finding,) = report.findings
        assert finding.code == "adapter_not_found"
        assert f"'{adapter}'" in finding.message
        assert ("does not exist" if what == "gone" else "other bytes") in finding.message
        given = adapter.with_name("away") if what == "gone" else write_adapter(adapter, small_factors())
        assert verify(merged, base, given).verdict is True

    def test_another_base_is_refuted_without_them(self, merged: Path, adapter: Path, tmp_path: Path) -> None:
        """By a tensor that nothing changed, and by the sha256 that a changed one had."""
        adapter.rename(tmp_path / "away")
        for name in ("model.norm.weight", f"{Q2}.weight"):
            tensors = base_tensors(torch.bfloat16)
            tensors[name] = tensors[name] + 1
            report = verify(merged, write_model(tmp_path / name, tensors))
            assert (report.verdict, said(report)["diagnosis"]) == (False, "other_base")
            assert codes(report) == {"adapter_not_found", "other_base"}

    def test_a_swap_s_receipt_does_not_say_it_alone(
        self, merged: Path, base: Path, adapter: Path, tmp_path: Path
    ) -> None:
        other = write_adapter(tmp_path / "other", small_factors(7))
        sources = {"from_adapters": [str(adapter)], "to_adapters": [str(other)]}
        session().swap(str(merged), **sources, base=str(base), output=tmp_path / "swapped")
        report = verify(tmp_path / "swapped", base)
        assert report.verdict is None
        assert codes(report) == {"adapters_not_named"}
        assert verify(tmp_path / "swapped", base, other).verdict is True

    def test_an_unmerged_model_is_its_base(self, merged: Path, base: Path, tmp_path: Path) -> None:
        """There is nothing in it to look for."""
        session().unmerge(str(merged), base=str(base), output=tmp_path / "back")
        assert verify(tmp_path / "back", base).verdict is True

    def test_a_receipt_that_does_not_fit_itself(self, merged: Path, base: Path) -> None:
        path = merged / "lora_lab_receipt.json"
        document = json.loads(path.read_text())
        document["inputs"] = document["inputs"][1:]
        path.write_text(json.dumps(document))
        report = verify(merged, base)
        assert report.verdict is None
        assert codes(report) == {"adapter_not_found"}
