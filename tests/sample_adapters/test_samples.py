"""The samples are what their README says, and the libraries they are for load them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_lab.live import LoraModel, load_adapter

FOLDER = Path(__file__).resolve().parents[2] / "sample_adapters"
ADAPTERS = sorted(path.parent.name for path in FOLDER.glob("*/adapter_config.json"))
MEGABYTE = 1_000_000
TOKENS = torch.arange(3, 63).reshape(3, 20)

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What the training wrote down."""
    return json.loads((FOLDER / "training_report.json").read_text(encoding="utf-8"))


@pytest.fixture
def base() -> Any:
    """The base as transformers loads it, in float32."""
    return transformers.LlamaForCausalLM.from_pretrained(FOLDER / "base", dtype=torch.float32).eval()


def files() -> list[Path]:
    return [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_the_collection() -> None:
    """Two seeds, two ranks, two tasks, rsLoRA, DoRA, patterns, one full fine-tune; stored in three dtypes."""
    assert set(ADAPTERS) == {
        "banking77-r8-seed0",
        "banking77-r8-seed1",
        "banking77-r64-seed0",
        "snips-r8",
        "banking77-rslora",
        "banking77-dora",
        "banking77-patterns",
    }
    assert (FOLDER / "finetuned-banking77" / "model.safetensors").is_file()
    settings = {name: json.loads((FOLDER / name / "adapter_config.json").read_text()) for name in ADAPTERS}
    assert [name for name, held in settings.items() if held["use_rslora"]] == ["banking77-rslora"]
    assert [name for name, held in settings.items() if held["use_dora"]] == ["banking77-dora"]
    assert [name for name, held in settings.items() if held["rank_pattern"] and held["alpha_pattern"]] == [
        "banking77-patterns"
    ]
    assert {held["base_model_name_or_path"] for held in settings.values()} == {"base"}


def test_sizes() -> None:
    """Small enough to be cloned with the code."""
    assert sum(path.stat().st_size for path in (FOLDER / "base").iterdir()) <= 12 * MEGABYTE
    assert sum(path.stat().st_size for path in files()) <= 35 * MEGABYTE
    index = json.loads((FOLDER / "base" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 2


def test_hashes_in_the_readme() -> None:
    """Every file that the training wrote is listed with its hash, and is that file."""
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = {name: digest for digest, name in re.findall(r"^    ([0-9a-f]{64})  (\S+)$", page, flags=re.MULTILINE)}
    written = {str(path.relative_to(FOLDER)) for path in files() if path.suffix not in {".py", ".md"}}
    assert set(listed) == written
    for name, digest in listed.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_every_training_succeeded(report: dict[str, Any]) -> None:
    """Held-out loss fell to under half, and accuracy is several times that of the majority class."""
    assert report["base"]["loss"] < report["base"]["loss_before"] / 1.5
    assert set(report["samples"]) == {*ADAPTERS, "finetuned-banking77"}
    for name, record in report["samples"].items():
        assert record["loss"] < record["loss_before"] / 2, name
        assert record["accuracy"] > 3 * record["majority"] > 3 * record["accuracy_before"], name


def test_figures_in_the_readme_are_those_of_the_report(report: dict[str, Any]) -> None:
    """Loss and accuracy of each sample stand in its line of the table."""
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name, record in report["samples"].items():
        line = next(line for line in page.splitlines() if line.startswith(f"| {name} | {record['task']} |"))
        cells = [cell.strip() for cell in line.split("|")]
        assert f"{record['loss']:.3f}" in cells
        assert f"{record['accuracy']:.1%}" in cells


def test_two_seeds_share_nothing_but_the_data() -> None:
    """Other factors from the start on: no tensor of one is near one of the other."""
    from safetensors.torch import load_file

    one, other = (load_file(FOLDER / f"banking77-r8-seed{seed}" / "adapter_model.safetensors") for seed in (0, 1))
    assert one.keys() == other.keys()
    for name in one:
        cosine = torch.nn.functional.cosine_similarity(one[name].flatten(), other[name].flatten(), dim=0)
        assert abs(cosine.item()) < 0.3, name


def test_the_tokenizer_loads_and_gives_the_ids_that_were_trained_on() -> None:
    """AutoTokenizer takes tokenizer.json as it is; blanks, digits, capitals and letters beyond ASCII come back."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER / "base")
    text = "Where is my card? 42 cafés => card arrival"
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(tokens) == text.lower()
    assert max(tokens) < len(tokenizer) == 1536
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    specification = json.loads((FOLDER / "base" / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokens == own_tokenizer(specification).encode(text)


def own_tokenizer(specification: dict[str, Any]) -> Any:
    """The tokenizer of the training script, which is not part of any package."""
    import importlib.util

    found = importlib.util.spec_from_file_location("sample_tokenizer", FOLDER / "tokenizer.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.Tokenizer([tuple(pair) for pair in specification["model"]["merges"]])


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_and_live_compute_the_same(name: str, base: Any) -> None:
    """PEFT loads the adapter onto the base, so do we, and the logits agree; they differ from the base's."""
    alone = base(TOKENS).logits
    lora = LoraModel(base)
    load_adapter(lora, "sample", FOLDER / name)
    ours = base(TOKENS).logits
    theirs = peft.PeftModel.from_pretrained(lora.detach(), FOLDER / name)(TOKENS).logits
    # Sums of at most 640 terms in 29 matrices one after another.
    bound = 29 * 640 * torch.finfo(torch.float32).eps * ours.abs().max().item()
    assert (ours - theirs).abs().max().item() <= bound
    assert (ours - alone).abs().max().item() > 1


def test_the_fine_tune_answers_better_than_the_base(base: Any) -> None:
    """A banking question gets the loss on its intent cut to under a tenth."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER / "base")
    tuned = transformers.LlamaForCausalLM.from_pretrained(FOLDER / "finetuned-banking77", dtype=torch.float32).eval()
    question = [1, *tokenizer("where is my new card? it has not arrived =>", add_special_tokens=False).input_ids]
    answer = [*tokenizer(" card arrival", add_special_tokens=False).input_ids, 2]
    tokens = torch.tensor([question + answer])
    labels = torch.tensor([[-100] * len(question) + answer])
    with torch.no_grad():
        assert tuned(tokens, labels=labels).loss < base(tokens, labels=labels).loss / 10
