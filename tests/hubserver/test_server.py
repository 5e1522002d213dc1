"""The unmodified client can do everything with the server that the tests need of a Hub, in each of three transports."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hubserver import HubServer
from hubserver.wire import wait_until

PUSH = """
import json, os, pathlib
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
api = HfApi()
said = {"who": api.whoami()["name"]}
said["url"] = str(api.create_repo("anna/adapter", private=True))
api.create_repo("anna/adapter", exist_ok=True)
first = api.model_info("anna/adapter")
said["private"] = first.private
large = pathlib.Path(os.environ["LARGE"]).read_bytes()
pathlib.Path("copy.safetensors").write_bytes(large)
operations = [
    CommitOperationAdd("adapter_model.safetensors", "copy.safetensors"),
    CommitOperationAdd("adapter_config.json", b"{}"),
    CommitOperationAdd("sub/folder/README.md", b"---\\nlicense: mit\\n---\\n"),
]
made = api.create_commit("anna/adapter", operations, commit_message="Upload", parent_commit=first.sha)
info = api.model_info("anna/adapter", files_metadata=True)
said["moved"] = info.sha == made.oid != first.sha
said["lfs"] = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}
said["sizes"] = {file.rfilename: file.size for file in info.siblings}
said["tree"] = [file.path for file in api.list_repo_tree("anna/adapter", recursive=True)]
said["top"] = [file.path for file in api.list_repo_tree("anna/adapter")]
said["info"] = [file.path for file in api.get_paths_info("anna/adapter", ["sub", "adapter_config.json"])]
try:
    late = [CommitOperationAdd("adapter_config.json", b"{ }")]
    api.create_commit("anna/adapter", late, commit_message="Late", parent_commit=first.sha)
except Exception as error:
    said["late"] = error.response.status_code if hasattr(error, "response") else str(error)
folder = snapshot_download("anna/adapter")
found = pathlib.Path(folder)
said["there"] = (found / "adapter_model.safetensors").read_bytes() == large
said["small"] = (found / "adapter_config.json").read_text()
pull = api.create_commit(
    "anna/adapter",
    [CommitOperationAdd("new.safetensors", large[:-1]), CommitOperationDelete("adapter_config.json")],
    commit_message="As a proposal",
    create_pr=True,
)
said["pull"] = pull.pr_num, pull.pr_revision
said["pull files"] = api.list_repo_files("anna/adapter", revision="refs/pr/1")
api.create_branch("anna/adapter", branch="other", revision=first.sha)
api.create_tag("anna/adapter", tag="v1")
references = api.list_repo_refs("anna/adapter", include_pull_requests=True)
said["refs"] = [sorted(one.name for one in group) for group in (references.branches, references.tags)]
said["pulls"] = [one.name for one in references.pull_requests]
said["commits"] = [one.title for one in api.list_repo_commits("anna/adapter")]
said["one file"] = hf_hub_download("anna/adapter", "adapter_config.json", revision="v1").endswith(".json")
api.update_repo_settings("anna/adapter", private=False)
said["public"] = not api.model_info("anna/adapter").private
api.delete_branch("anna/adapter", branch="other")
api.delete_tag("anna/adapter", tag="v1")
print(json.dumps(said))
"""


@pytest.mark.parametrize("transport", ["lfs", "multipart", "xet"])
def test_a_push_and_what_comes_back(hub: HubServer, tmp_path: Path, transport: str) -> None:
    """Repositories, commits, references, a pull request and downloads; large files the way they are meant to go."""
    data = bytes(range(256)) * 1200
    (tmp_path / "large").write_bytes(data)
    hub.part_bytes = 100_000 if transport == "multipart" else None
    ran = hub.run_python(
        PUSH, home=tmp_path, token="hf_anna", xet=transport == "xet", more={"LARGE": str(tmp_path / "large")}
    )
    said = ran.ok().json
    assert said["who"] == "anna"
    assert said["url"].endswith("/anna/adapter")
    assert all(said[key] is True for key in ("private", "moved", "there", "public", "one file"))
    assert said["lfs"] == {"adapter_model.safetensors": hashlib.sha256(data).hexdigest()}
    assert said["sizes"]["adapter_model.safetensors"] == len(data)
    assert said["small"] == "{}"
    assert "sub/folder/README.md" in said["tree"]
    assert set(said["top"]) == {".gitattributes", "adapter_config.json", "adapter_model.safetensors", "sub"}
    assert set(said["info"]) == {"sub", "adapter_config.json"}
    assert said["late"] == 412
    assert said["pull"] == [1, "refs/pr/1"]
    assert set(said["pull files"]) == {
        ".gitattributes",
        "adapter_model.safetensors",
        "new.safetensors",
        "sub/folder/README.md",
    }
    assert said["refs"] == [["main", "other"], ["v1"]]
    assert said["pulls"] == ["refs/pr/1"]
    assert said["commits"] == ["Upload", "initial commit"]
    assert hub.files("anna/adapter", "refs/pr/1")["new.safetensors"] == data[:-1]
    puts = [seen.path.split("/")[1] for seen in hub.requests.matching("^PUT", origin="storage")]
    assert set(puts) == {"lfs": {"upload"}, "multipart": {"part"}, "xet": set()}[transport]
    assert not any(seen.authorized for seen in hub.requests.matching(origin="storage"))


FOLDER = """
import json, pathlib
from huggingface_hub import HfApi
api = HfApi()
folder = pathlib.Path("folder")
folder.mkdir()
(folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40)
(folder / "README.md").write_text("---\\nlibrary_name: peft\\ntags: [lora]\\nbase_model: org/base\\n---\\nText\\n")
api.create_repo("lab/from-folder")
api.upload_folder(repo_id="lab/from-folder", folder_path=folder)
api.upload_folder(repo_id="lab/from-folder", folder_path=folder, path_in_repo="again", create_pr=True)
print(json.dumps(api.list_repo_files("lab/from-folder") + [api.model_info("lab/from-folder").library_name]))
"""


@pytest.mark.parametrize("xet", [True, False])
def test_a_whole_folder(hub: HubServer, tmp_path: Path, xet: bool) -> None:
    """What the `hf` command does to upload a folder, with the card it asks about."""
    said = hub.run_python(FOLDER, home=tmp_path, token="hf_anna", xet=xet).ok().json
    assert set(said) == {".gitattributes", "README.md", "adapter_model.safetensors", "peft"}
    assert hub.requests.matching("POST /api/validate-yaml")
    assert "again/README.md" in hub.files("lab/from-folder", "refs/pr/1")


LISTING = """
import json
from huggingface_hub import HfApi
api = HfApi()
print(json.dumps([
    [one.id for one in api.list_models(search="adapter", filter="lora", sort="downloads", limit=3)],
    [one.id for one in api.list_models(author="anna")],
    len(list(api.list_repo_tree("anna/many", recursive=True))),
]))
"""


def test_search_and_pages(hub: HubServer, tmp_path: Path) -> None:
    """Words, tags, order, and more items than one page holds."""
    hub.page_size = 4
    card = "---\ntags: [lora]\n---\n"
    for number in range(6):
        hub.add(f"anna/adapter-{number}", {"README.md": card if number else "no card"})
        hub.store.repositories[f"anna/adapter-{number}"].downloads = number
    hub.add("anna/hidden-adapter", {"README.md": card}, private=True)
    hub.add("anna/many", {f"file{number}.json": "{}" for number in range(10)})
    found, of_anna, files = hub.run_python(LISTING, home=tmp_path).ok().json
    assert found == ["anna/adapter-5", "anna/adapter-4", "anna/adapter-3"]
    assert len(of_anna) == 7
    assert files == 11


ERRORS = """
import json
from huggingface_hub import HfApi, hf_hub_download
api = HfApi()
def said(call, *arguments, **more):
    try:
        call(*arguments, **more)
    except Exception as error:
        return type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)
print(json.dumps({
    "missing": said(api.model_info, "anna/none"),
    "revision": said(api.model_info, "anna/open", revision="none"),
    "entry": said(hf_hub_download, "anna/open", "none.json"),
    "gated": said(hf_hub_download, "anna/gated", "config.json"),
    "private": said(api.model_info, "anna/private"),
    "token": said(api.whoami, token="hf_wrong"),
    "taken": said(api.create_repo, "anna/open"),
    "foreign": said(api.create_repo, "carl/new"),
    "renamed": api.model_info("anna/old").id,
    "old file": bool(hf_hub_download("anna/old", "config.json")),
}))
"""


def test_refusals(hub: HubServer, tmp_path: Path) -> None:
    """The client takes each refusal for what it is."""
    for name in ("open", "old"):
        hub.add(f"anna/{name}", {"config.json": "{}"})
    hub.add("anna/gated", {"config.json": "{}"}, gated="auto")
    hub.add("anna/private", {"config.json": "{}"}, private=True)
    hub.rename("anna/old", "anna/new")
    said = hub.run_python(ERRORS, home=tmp_path, token="hf_other").ok().json
    assert said == {
        "missing": ["RepositoryNotFoundError", 404],
        "revision": ["RevisionNotFoundError", 404],
        "entry": ["RemoteEntryNotFoundError", 404],
        "gated": ["GatedRepoError", 403],
        "private": ["RepositoryNotFoundError", 404],
        "token": ["HfHubHTTPError", 401],
        "taken": ["HfHubHTTPError", 403],
        "foreign": ["HfHubHTTPError", 403],
        "renamed": "anna/new",
        "old file": True,
    }


FAULTS = """
import json, os
import httpx2
url = os.environ["HF_ENDPOINT"] + "/anna/a/resolve/main/"
client = httpx2.Client(follow_redirects=True)
def said(name, **headers):
    try:
        answer = client.get(url + name, headers=headers)
        return answer.status_code, len(answer.content), answer.headers.get("content-range"), answer.content[:2].hex()
    except Exception as error:
        return type(error).__name__
ranged = {"Range": "bytes=10-19"}
large, small = "w.safetensors", "c.json"
print(json.dumps([
    said(large, **ranged), said(small, **ranged), said(large, Range="bytes=-5"), said(large, Range="bytes=99999-"),
    said(large), said(large), said(large, **ranged), said(large, **ranged), said(large), said(large), said(small),
]))
"""


def test_faults(hub: HubServer, tmp_path: Path) -> None:
    """Each fault happens as often as it was asked for, and then all is well again."""
    hub.add("anna/a", {"w.safetensors": bytes(1000), "c.json": "x" * 30})
    hub.faults.add("GET", status=503, headers={"Retry-After": "1"}, skip=3, origin="storage")
    hub.faults.add("GET", flip_at=0, origin="storage", skip=3)
    hub.faults.add("GET", ignore_range=True, origin="storage", skip=3)
    hub.faults.add("GET", content_range="bytes 0-1/2", origin="storage", skip=3)
    hub.faults.add("GET", cut_after=100, origin="storage", skip=3)
    hub.faults.add("resolve/main/w", expire=True, skip=8)
    said = hub.run_python(FAULTS, home=tmp_path).ok().json
    assert said[:4] == [
        [206, 10, "bytes 10-19/1000", "0000"],
        [206, 10, "bytes 10-19/30", "7878"],
        [206, 5, "bytes 995-999/1000", "0000"],
        [416, 0, "bytes */1000", ""],
    ]
    assert said[4][0] == 503
    assert said[5:7] == [[200, 1000, None, "0100"], [200, 1000, None, "0000"]]
    assert said[7] == [206, 10, "bytes 0-1/2", "0000"]
    assert said[8] == "RemoteProtocolError"
    assert said[9][0] == 403
    assert said[10] == [200, 30, None, "7878"]
    assert wait_until(lambda: hub.requests.matching("object", origin="storage")[-1].status == 403)
    assert hub.requests.sent("object", origin="storage") >= 10 + 5 + 1000 + 1000 + 10 + 100
