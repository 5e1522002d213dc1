"""What a person types, and what a folder holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import write_adapter, write_base

from lora_lab.errors import HubError, LoraLabError
from lora_lab.sources.hub import Hub
from lora_lab.sources.hub_access import HubAccess
from lora_lab.sources.hub_cache import commit_of
from lora_lab.sources.local import candidates
from lora_lab.sources.locators import parse

HUB = {
    "org/name": ("org/name", None, ""),
    "org/name@v1.0": ("org/name", "v1.0", ""),
    "org/name@main:adapters/french": ("org/name", "main", "adapters/french"),
    "hf://org/name": ("org/name", None, ""),
    "hf://org/name@abc:sub": ("org/name", "abc", "sub"),
    "hf://models/org/name": ("org/name", None, ""),
    "hf://org/name/sub/folder": ("org/name", None, "sub/folder"),
    "hf://org/name@v1/sub/folder": ("org/name", "v1", "sub/folder"),
    "hf://org/name@refs/pr/3": ("org/name", "refs/pr/3", ""),
    "hf://org/name@refs/pr/3/sub": ("org/name", "refs/pr/3", "sub"),
    "hf://org/name@refs%2Fpr%2F3/sub": ("org/name", "refs/pr/3", "sub"),
    "org/name@feature/x:sub": ("org/name", "feature/x", "sub"),
    "https://huggingface.co/org/name": ("org/name", None, ""),
    "https://huggingface.co/org/name/": ("org/name", None, ""),
    "https://hf.co/org/name": ("org/name", None, ""),
    "https://huggingface.co/org/name/tree/main/sub/folder": ("org/name", "main", "sub/folder"),
    "https://huggingface.co/org/name/tree/refs%2Fpr%2F3": ("org/name", "refs/pr/3", ""),
    "https://huggingface.co/org/name/tree/refs/pr/3/sub": ("org/name", "refs/pr/3", "sub"),
    "https://huggingface.co/org/name/blob/main/adapter_model.safetensors": (
        "org/name",
        "main",
        "adapter_model.safetensors",
    ),
    "https://huggingface.co/org/name/resolve/v1/a/b.safetensors?download=true": ("org/name", "v1", "a/b.safetensors"),
    "http://127.0.0.1:8123/hub/org/name/tree/main": ("org/name", "main", ""),
}
REFUSED = [
    "hf://name",
    "hf://",
    "hf://org/name:../../etc",
    "hf://org/name@../x",
    "hf://org/name@a b",
    "hf://org/name:a//b",
    "hf://org/name:a\\b",
    "org/name@main:a\x1b[2J",
    "https://huggingface.co/",
    "https://huggingface.co/org/name/discussions/1",
]


@pytest.mark.parametrize("text", HUB)
def test_places_on_the_hub(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repository, revision and sub-folder in every spelling."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:8123/hub")
    found = parse(text)
    assert not found.is_local
    assert (found.repository, found.revision, found.subfolder) == HUB[text]


@pytest.mark.parametrize("text", ["./org/name", "/org/name", "../x", ".", "name", "a/b/c", "~/x"])
def test_paths(text: str) -> None:
    """Whatever is no repository's name, or says that it is a path, is one."""
    assert parse(text).is_local


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder called like a repository is that folder; hf:// still means the Hub."""
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse("org/name").is_local
    assert not parse("hf://org/name").is_local


@pytest.mark.parametrize("text", REFUSED)
def test_what_names_no_repository(text: str) -> None:
    """Refused, with the form that is expected."""
    with pytest.raises(LoraLabError, match="hf://org/name"):
        parse(text)


@pytest.mark.parametrize("text", ["hf://datasets/org/name", "https://huggingface.co/spaces/org/name"])
def test_what_is_no_model(text: str) -> None:
    """A data set or a space is told as what it is."""
    with pytest.raises(LoraLabError, match="expected a model"):
        parse(text)


def test_links_to_elsewhere() -> None:
    """A page of another host is no place on the Hub."""
    with pytest.raises(LoraLabError, match="no link to the Hub"):
        parse("https://huggingface.co.example.org/org/name")


def test_a_path_in_the_cache_tells_its_commit(tmp_path: Path) -> None:
    """What was fetched is known by the commit that it is of, also when it is opened by its path."""
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("ab" * 20)
    assert commit_of(snapshot) == commit_of(snapshot / "sub") == "ab" * 20
    assert commit_of(tmp_path / "snapshots" / ("ab" * 20)) is None


def test_offline_says_what_is_missing() -> None:
    """Without network and cache there is one sentence."""
    with pytest.raises(HubError, match="not in the cache") as caught:
        Hub(HubAccess(offline=True)).fetch(parse("org/name"))
    assert "--offline" in caught.value.hint


def test_what_the_cache_holds_is_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot in the shared cache is opened without asking anybody, and its commit is known."""
    from huggingface_hub import constants

    commit = "a" * 40
    repository = tmp_path / "models--org--name"
    write_adapter(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    fetched = Hub(HubAccess(offline=True)).fetch(parse("org/name"))
    assert fetched.commit == commit
    assert (fetched.path / "adapter_config.json").exists()


def test_walk(tmp_path: Path) -> None:
    """Adapters and models at any depth in natural order; a model's folder is not searched, hidden ones are not seen."""
    for place in ("b/checkpoint-10", "b/checkpoint-9", "a", "a/named", ".hidden", "model/inside"):
        write_adapter(tmp_path / place)
    write_base(tmp_path / "model")
    (tmp_path / "loose.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    found = [(candidate.name, candidate.is_model) for candidate in candidates(tmp_path)]
    assert found == [
        ("a", False),
        ("a/named", False),
        ("b/checkpoint-9", False),
        ("b/checkpoint-10", False),
        ("model", True),
        ("loose.safetensors", False),
    ]


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    """A link that leads back up does not go round for ever."""
    write_adapter(tmp_path / "a")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert [candidate.name for candidate in candidates(tmp_path)] == ["a"]


def test_one_adapter_is_a_library_of_one(tmp_path: Path) -> None:
    """Its own folder lists as itself, under its own name."""
    write_adapter(tmp_path / "mine")
    assert [(found.name, found.path) for found in candidates(tmp_path / "mine")] == [("mine", tmp_path / "mine")]
