"""What a push would send: an explicit list, nothing of this machine, and an identity that follows every byte."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab import Session
from lora_lab.domain.progress import Unwatched
from lora_lab.domain.report import Report
from lora_lab.domain.sharing import CardFacts, FileState, Origin, RemoteFile, Target, git_sha1
from lora_lab.errors import FileFormatError, LoraLabError, UnsafeFileError
from lora_lab.operations.push import PushOptions, PushPlan, plan_push
from lora_lab.operations.push_hashing import Hashes
from lora_lab.operations.push_privacy import local_path_in, short_name, without_paths
from lora_lab.storage.files import sha256_of

HUB = "https://huggingface.co"
BASE = PushOptions(base_model="org/tiny")
SECRET = "hf_" + "aB3" * 8


@pytest.fixture
def adapter(samples: Path, tmp_path: Path) -> Path:
    """A copy of a sample adapter."""
    return Path(shutil.copytree(samples / "snips-r8", tmp_path / "adapter"))


@pytest.fixture(scope="module")
def combined(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with a receipt, whose inputs lie on this machine."""
    output = tmp_path_factory.mktemp("made") / "combined"
    inputs = [str(samples / "snips-r8"), str(samples / "banking77-r8-seed0")]
    Session(cache=False).combine(inputs, method="svd", rank=4, strengths=[0.5, 2], output=output)
    return output


def planned(
    folder: Path,
    options: PushOptions = BASE,
    *,
    target: Target | None = None,
    facts: Callable[[str], CardFacts | None] | None = None,
) -> PushPlan:
    """The plan, without spectrum and network."""
    return plan_push(
        Session(cache=False).open(str(folder)),
        target or Target("me/it", HUB),
        options,
        facts=facts,
        hashes=Hashes(sha256_of),
        pictured=lambda: (None, None, ()),
        observer=Unwatched(),
    )


def names(plan: PushPlan) -> list[str]:
    return [file.name for file in plan.files]


def content_of(plan: PushPlan, name: str) -> Any:
    file = next(file for file in plan.files if file.name == name)
    return json.loads(file.content or Path(file.path).read_bytes())


def edited(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# Which files


def test_only_files_of_an_adapter_are_sent_and_the_others_are_named(adapter: Path) -> None:
    for name in (
        ".env",
        "train.py",
        "optimizer.pt",
        "pytorch_model.bin",
        "notes.txt",
        "chart.png",
        "other.safetensors",
    ):
        (adapter / name).write_text("x")
    (adapter / "checkpoint-1").mkdir()
    (adapter / "tokenizer_config.json").write_text("{}")
    plan = planned(adapter)
    assert names(plan) == ["adapter_model.safetensors", "adapter_config.json", "tokenizer_config.json", "README.md"]
    assert {one.name for one in plan.left_out} == {
        *(".env", "train.py", "optimizer.pt", "pytorch_model.bin", "notes.txt", "chart.png", "other.safetensors"),
        "checkpoint-1/",
    }
    assert all(one.reason for one in plan.left_out)


def test_pictures_that_the_card_shows_go_along(adapter: Path) -> None:
    (adapter / "figures").mkdir()
    for name in ("figures/loss.png", "figures/other.png", "logo.svg"):
        (adapter / name).write_bytes(b"x")
    (adapter / "README.md").write_text(
        '# Mine\n![loss](figures/loss.png "title") <img src="logo.svg"> ![no](https://x.org/a.png) ![no](../up.png)\n'
    )
    assert {"figures/loss.png", "logo.svg"} == {name for name in names(planned(adapter)) if "." in name} & {
        *("figures/loss.png", "logo.svg", "figures/other.png", "../up.png")
    }


@pytest.mark.parametrize("name", ["tokenizer.json", "README.md", "adapter_config.json"])
def test_a_link_out_of_the_folder_is_refused(adapter: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text((adapter / name).read_text() if (adapter / name).exists() else "{}")
    (adapter / name).unlink(missing_ok=True)
    (adapter / name).symlink_to(secret)
    with pytest.raises(UnsafeFileError, match="leaves its folder"):
        planned(adapter)


def test_a_sharded_model_is_sent_with_its_index(samples: Path) -> None:
    plan = planned(samples / "base")
    assert names(plan)[:3] == [
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    ]
    for file in plan.files:
        if file.path:
            assert file.sha256 == hashlib.sha256(Path(file.path).read_bytes()).hexdigest()


# What must not leave the machine


@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "adapter_config.json", "LICENSE"])
def test_a_token_in_any_text_is_refused_and_not_repeated(adapter: Path, name: str) -> None:
    if name == "adapter_config.json":
        edited(adapter / name, revision=SECRET)
    else:
        (adapter / name).write_text(f'{{"a": 1,\n "b": "{SECRET}"}}')
    with pytest.raises(UnsafeFileError, match="access token in line") as caught:
        planned(adapter)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["/home/anna/data", "/Users/anna/x.json", "~/models/a", "C:\\Users\\anna\\m", "/tmp/run-3", "file:///mnt/a"]
)
def test_a_path_in_the_persons_own_card_is_refused_with_its_line(adapter: Path, path: str) -> None:
    (adapter / "README.md").write_text(f"# Mine\n\ntrained from `{path}`\n")
    with pytest.raises(UnsafeFileError, match="in line 3"):
        planned(adapter)


@pytest.mark.parametrize("text", ["https://x.org/home/a", "see docs/tmp/x", "and/or", "1/2", "a/home/b", "v1.0/data/x"])
def test_what_is_no_path_of_this_machine_is_let_through(adapter: Path, text: str) -> None:
    (adapter / "README.md").write_text(f"# Mine\n\n{text}\n")
    assert text in planned(adapter).card


def test_a_model_loaded_from_a_path_is_sent_without_it(samples: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(samples / "base", tmp_path / "model"))
    edited(model / "config.json", _name_or_path="/home/anna/base")
    plan = planned(model)
    assert "_name_or_path" not in content_of(plan, "config.json")
    assert content_of(plan, "config.json")["model_type"] == "llama"
    assert [finding.code for finding in plan.findings].count("rewritten") == 1
    assert json.loads((model / "config.json").read_text())["_name_or_path"] == "/home/anna/base"


def test_a_model_that_asks_for_code_is_told(samples: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(samples / "base", tmp_path / "model"))
    edited(model / "config.json", auto_map={"AutoModel": "modeling.Mine"})
    (model / "modeling.py").write_text("raise SystemExit")
    plan = planned(model)
    assert "code_left_out" in {finding.code for finding in plan.findings}
    assert "modeling.py" not in names(plan)


def test_a_path_in_another_field_of_a_configuration_is_refused(adapter: Path) -> None:
    edited(adapter / "adapter_config.json", corda_config={"cache_file": "/scratch/anna/cov.pt"})
    with pytest.raises(UnsafeFileError, match=r"/scratch/anna/cov\.pt"):
        planned(adapter)


def test_a_receipt_is_sent_with_names_and_the_hashes_of_what_is_sent(combined: Path) -> None:
    plan = planned(combined)
    receipt = content_of(plan, "lora_lab_receipt.json")
    text = json.dumps(receipt)
    assert str(Path.home()) not in text
    assert local_path_in(text) is None
    assert [entry["locator"] for entry in receipt["inputs"]] == ["snips-r8", "banking77-r8-seed0"]
    assert receipt["arguments"]["adapters"] == ["snips-r8", "banking77-r8-seed0"]
    config = next(file for file in plan.files if file.name == "adapter_config.json")
    told = {entry["path"]: entry for entry in receipt["outputs"]}
    assert told["adapter_config.json"]["sha256"] == config.sha256 != told["adapter_config.json"]["sha256_before_push"]
    assert plan.message == "Upload adapter (combine: snips-r8×0.5 + banking77-r8-seed0×2, svd)"


def test_a_receipt_of_other_bytes_is_told(combined: Path, samples: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(combined, tmp_path / "changed"))
    shutil.copy(samples / "snips-r8" / "adapter_model.safetensors", folder)
    edited(folder / "adapter_config.json", r=8, lora_alpha=16)
    assert "receipt_disagrees" in {finding.code for finding in planned(folder).findings}


def test_inputs_from_the_hub_keep_their_names_and_commits(combined: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(combined, tmp_path / "made"))
    receipt = json.loads((folder / "lora_lab_receipt.json").read_text())
    commit = "c" * 40
    receipt["inputs"][0] |= {
        "locator": "org/sql",
        "path": f"/home/anna/.cache/huggingface/hub/models--org--sql/snapshots/{commit}",
        "revision": commit,
    }
    receipt["arguments"]["adapters"][0] = "org/sql"
    (folder / "lora_lab_receipt.json").write_text(json.dumps(receipt))
    plan = planned(folder)
    sent = content_of(plan, "lora_lab_receipt.json")
    assert sent["inputs"][0]["locator"] == sent["inputs"][0]["path"] == f"org/sql@{commit}"
    assert sent["arguments"]["adapters"][0] == f"org/sql@{commit}"
    assert "[org/sql@" in plan.card


@given(st.lists(st.text("ab/~ ._-:\\C'\"", max_size=12), max_size=6).map("/home/anna/".join))
def test_no_path_is_left_in_a_text_without_paths(text: str) -> None:
    assert local_path_in(without_paths(text)) is None


@given(st.text(min_size=1, max_size=20))
def test_a_short_name_leads_nowhere(name: str) -> None:
    shown = short_name(f"/home/anna/{name}")
    assert shown
    assert "/" not in shown


# The base model


def test_a_base_that_is_a_folder_of_this_machine_is_refused_by_name(samples: Path) -> None:
    with pytest.raises(LoraLabError, match=r"'base'.*not on the Hub") as caught:
        planned(samples / "snips-r8", PushOptions())
    assert "--base-model" in caught.value.hint


@pytest.mark.parametrize("named", ["/models/base", "./base", "..\\base", "a/b/c", "C:\\base"])
def test_a_path_as_base_is_refused_by_name(adapter: Path, named: str) -> None:
    edited(adapter / "adapter_config.json", base_model_name_or_path=named)
    with pytest.raises(LoraLabError, match="not on the Hub"):
        planned(adapter, PushOptions())


def test_a_base_that_the_hub_does_not_know_is_told_or_refused(adapter: Path) -> None:
    edited(adapter / "adapter_config.json", base_model_name_or_path="org/gone")
    assert "base_not_found" in {one.code for one in planned(adapter, PushOptions(), facts=lambda _: None).findings}
    edited(adapter / "adapter_config.json", base_model_name_or_path="gone")
    with pytest.raises(LoraLabError, match="'gone'"):
        planned(adapter, PushOptions(), facts=lambda _: None)
    known = planned(adapter, PushOptions(), facts=lambda name: CardFacts(name))
    assert known.base_models == ("gone",)


def test_the_name_given_stands_in_what_is_sent_and_the_folder_stays(adapter: Path) -> None:
    before = (adapter / "adapter_config.json").read_bytes()
    plan = planned(adapter)
    assert content_of(plan, "adapter_config.json")["base_model_name_or_path"] == "org/tiny"
    assert (adapter / "adapter_config.json").read_bytes() == before
    with pytest.raises(LoraLabError, match="no name of the Hub"):
        planned(adapter, PushOptions(base_model="/models/tiny"))


# Against what is there


def there(files: Mapping[str, bytes]) -> dict[str, RemoteFile]:
    """A repository with these files: weights stored large, others small."""
    return {
        name: RemoteFile(len(data), hashlib.sha256(data).hexdigest(), "0" * 40)
        if name.endswith(".safetensors")
        else RemoteFile(len(data), None, git_sha1(data))
        for name, data in files.items()
    }


def test_what_is_there_already_is_not_sent_again(adapter: Path) -> None:
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    files = there({"adapter_model.safetensors": weights, "adapter_config.json": b"{}", "old.safetensors": b"x"})
    target = Target("me/it", HUB, exists=True, is_private=False, parent="a" * 40, files=files)
    plan = planned(adapter, target=target)
    states = {file.name: target.state_of(file) for file in plan.files}
    assert states == {
        "adapter_model.safetensors": FileState.SAME,
        "adapter_config.json": FileState.CHANGED,
        "README.md": FileState.NEW,
    }
    assert [file.name for file in plan.files_to_send] == ["adapter_config.json", "README.md"]
    codes = {finding.code for finding in plan.findings}
    assert {"is_public", "weights_stay"} <= codes


def test_public_does_not_change_what_is_private_and_says_so(adapter: Path) -> None:
    target = Target("me/it", HUB, exists=True, is_private=True, parent="a" * 40)
    plan = planned(adapter, PushOptions(is_public=True, base_model="org/tiny"), target=target)
    assert "visibility_stays" in {finding.code for finding in plan.findings}


def test_a_plan_is_the_same_for_the_same_bytes_alone(adapter: Path) -> None:
    first = planned(adapter)
    assert planned(adapter).id == first.id
    assert planned(adapter, target=Target("me/it", HUB, parent="b" * 40)).id != first.id
    assert planned(adapter, PushOptions(is_public=True, base_model="org/tiny")).id != first.id
    edited(adapter / "adapter_config.json", lora_dropout=0.5)
    assert planned(adapter).id != first.id


def test_a_card_that_is_kept_goes_as_it_is(adapter: Path) -> None:
    with pytest.raises(LoraLabError, match="no README"):
        planned(adapter, PushOptions(base_model="org/tiny", keep_card=True))
    (adapter / "README.md").write_text("# Mine\n")
    plan = planned(adapter, PushOptions(base_model="org/tiny", keep_card=True))
    assert plan.card == "# Mine\n"
    assert next(file for file in plan.files if file.name == "README.md").origin is Origin.FOLDER


def test_a_dry_run_offline_shows_everything_and_a_push_is_refused(adapter: Path) -> None:
    session = Session(cache=False, offline=True)
    report: Report = session.push(adapter, "me/it", base_model="org/tiny", dry_run=True)
    document = report.to_json()
    assert document["visibility"] == "private"
    assert document["exists"] is None
    assert [row["path"] for row in document["files"]][-2:] == ["README.md", "lora_lab_spectrum.png"]
    assert "not_asked" in {warning["code"] for warning in document["warnings"]}
    with pytest.raises(LoraLabError, match="without asking the Hub"):
        session.push(adapter, "me/it", base_model="org/tiny")


@pytest.mark.parametrize(
    ("repository", "revision", "said"),
    [
        ("a/b/c", None, "no name of a repository"),
        ("", None, "no name of a repository"),
        ("me/it:sub", None, "sub-folder"),
        ("me/it@" + "a" * 40, None, "is a commit"),
        ("me/it@one", "two", "another"),
    ],
)
def test_what_is_no_place_to_push_to_is_refused(
    adapter: Path, repository: str, revision: str | None, said: str
) -> None:
    with pytest.raises(LoraLabError, match=said):
        Session(cache=False, offline=True).push(
            adapter, repository, revision=revision, base_model="org/tiny", dry_run=True
        )


def test_a_broken_receipt_is_refused(combined: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(combined, tmp_path / "made"))
    (folder / "lora_lab_receipt.json").write_text('{"operation": 1, "outputs": []}')
    with pytest.raises(FileFormatError):
        planned(folder)
