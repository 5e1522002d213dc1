"""What a person types, and what a folder holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import write_adapter, write_base

from lora_lab.errors import HubError, LoraLabError
from lora_lab.sources.hub import fetch
from lora_lab.sources.local import candidates
from lora_lab.sources.locators import parse

HUB = {
    "org/name": ("org/name", None, ""),
    "org/name@v1.0": ("org/name", "v1.0", ""),
    "org/name@main:adapters/french": ("org/name", "main", "adapters/french"),
    "hf://org/name": ("org/name", None, ""),
    "hf://org/name@abc:sub": ("org/name", "abc", "sub"),
    "https://huggingface.co/org/name": ("org/name", None, ""),
    "https://huggingface.co/org/name/tree/main/sub/folder": ("org/name", "main", "sub/folder"),
}


@pytest.mark.parametrize("text", HUB)
def test_places_on_the_hub(text: str) -> None:
    """Repository, revision and sub-folder in every spelling."""
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


@pytest.mark.parametrize("text", ["hf://name", "hf://", "hf://org/name:../../etc", "https://huggingface.co/"])
def test_what_names_no_repository(text: str) -> None:
    """Refused, with the form that is expected."""
    with pytest.raises(LoraLabError, match="hf://org/name"):
        parse(text)


def test_offline_says_what_is_missing() -> None:
    """Without network and cache there is one sentence."""
    with pytest.raises(HubError, match="not in the cache") as caught:
        fetch(parse("org/name"), offline=True)
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
    import huggingface_hub._snapshot_download as client

    monkeypatch.setattr(client.constants, "HF_HUB_CACHE", str(tmp_path))
    fetched = fetch(parse("org/name"), offline=True)
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
