"""Pushing through the unmodified client: what arrives, who may, two at once, and lines that are cut."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hubserver import HubServer, Ran, environment
from huggingface_hub import ModelCard

from lora_lab import Session

BASE = "lab/tiny"
CARD = "---\nlicense: apache-2.0\n---\n# Tiny\n"


@pytest.fixture(scope="module")
def made(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A combined adapter and a merged model."""
    place = tmp_path_factory.mktemp("made")
    session = Session(cache=False)
    one, two = str(samples / "snips-r8"), str(samples / "banking77-r8-seed0")
    session.combine([one, two], method="svd", rank=4, strengths=[0.5, 2.0], output=place / "combined")
    session.merge([one], base=str(samples / "base"), output=place / "merged")
    return place


@pytest.fixture(scope="module")
def small(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with a card of its own, so that nothing has to be computed for it."""
    place = Path(shutil.copytree(samples / "snips-r8", tmp_path_factory.mktemp("small") / "small"))
    (place / "README.md").write_text("# Mine\n")
    return place


class Desk:
    """A hub, and one process that pushes to it again and again: a fresh one each time would mostly load libraries."""

    CODE = """
        import json, sys
        from lora_lab import LoraLabError, Session
        session = Session(cache=False)
        for line in sys.stdin:
            try:
                report = session.push(**json.loads(line))
                said = {"document": report.to_json(), "verdict": report.verdict}
            except LoraLabError as error:
                said = {"error": error.message, "hint": error.hint}
            print(json.dumps(said), flush=True)
    """

    def __init__(self, hub: HubServer, home: Path) -> None:
        self.hub = hub
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(self.CODE)],
            env=environment(endpoint=hub.url, home=home, token="hf_anna", xet=False),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def push(self, folder: Path, repository: str, **wish: Any) -> dict[str, Any]:
        """What came of it."""
        wish = {"base_model": BASE, "keep_card": True, **wish}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"folder": str(folder), "repository": repository, **wish}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())  # type: ignore[no-any-return]

    def close(self) -> None:
        """Let it end."""
        self.process.communicate()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One for all that needs no settings of its own."""
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_account("hf_anna", "anna")
        found = Desk(hub, tmp_path_factory.mktemp("home"))
        yield found
        found.close()
        assert hub.errors == []


def push(hub: HubServer, home: Path, folder: Path, repository: str, *options: str, **settings: Any) -> Ran:
    """``lora-lab push --json``, of what needs no computing unless told otherwise."""
    card = () if "--with-card" in options else ("--keep-card",)
    chosen = [option for option in options if option != "--with-card"]
    settings = {"token": "hf_anna", **settings}
    words = ("push", str(folder), repository, "--yes", "--json", "--base-model", BASE, *card, *chosen)
    return hub.run_lab(*words, home=home, **settings)


def files_of(hub: HubServer, name: str, revision: str = "main") -> dict[str, bytes]:
    """What a repository holds, but for what it was made with."""
    return {path: data for path, data in hub.files(name, revision).items() if path != ".gitattributes"}


def codes(said: dict[str, Any]) -> set[str]:
    """Of the warnings."""
    return {warning["code"] for warning in said["document"]["warnings"]}


# What arrives


@pytest.fixture(params=["lfs", "multipart", "xet"])
def transport(request: pytest.FixtureRequest, hub: HubServer) -> Iterator[dict[str, Any]]:
    """The three ways in which the client sends large files."""
    if request.param == "multipart":
        hub.part_bytes = 300_000
    yield {"xet": request.param == "xet"}
    kind = {"lfs": "PUT /", "multipart": "POST /api/complete_multipart", "xet": "GET /api/models/.*/xet-write-token"}
    assert hub.requests.matching(kind[request.param])


def test_an_adapter_and_a_model_arrive_and_come_back(
    hub: HubServer, made: Path, tmp_path: Path, transport: dict[str, Any]
) -> None:
    """Pulled on an empty cache they are what was sent, byte for byte, and prove themselves."""
    hub.add(BASE, {"README.md": CARD, "config.json": "{}"})
    names = ("combined", "merged") if transport["xet"] else ("merged",)  # the adapter's card takes seconds to compute
    pushing = f"""
        import json
        from lora_lab import Session
        session = Session(cache=False)
        print(json.dumps([
            session.push(f"{made}/{{name}}", f"anna/{{name}}", base_model="{BASE}").to_json()
            for name in {names}
        ]))
    """
    reports = hub.run_python(pushing, home=tmp_path / "here", token="hf_anna", **transport).ok().json
    for name, told in zip(names, reports, strict=True):
        there = files_of(hub, f"anna/{name}")
        assert told["exists"] is False
        assert told["visibility"] == "private"
        assert hub.store.repositories[f"anna/{name}"].private
        assert {row["path"]: row["sha256"] for row in told["files"]} == {
            path: hashlib.sha256(data).hexdigest() for path, data in there.items()
        }
        assert all(row["arrived"] for row in told["files"])
        for path in (made / name).glob("*.safetensors"):
            assert there[path.name] == path.read_bytes()
        assert len(hub.requests.matching(f"POST /api/models/anna/{name}/commit/")) == 1
        assert told["url"].endswith(f"/anna/{name}/commit/{told['commit']}")
    pulling = f"""
        import json
        from huggingface_hub import snapshot_download
        from lora_lab import Session
        places = {{name: snapshot_download(f"anna/{{name}}") for name in {names}}}
        session = Session(cache=False)
        print(json.dumps([places, [session.verify(place).verdict for place in places.values()]]))
    """
    places, verdicts = hub.run_python(pulling, home=tmp_path / "there", token="hf_anna", **transport).ok().json
    assert verdicts == [True] * len(names)
    for name, place in places.items():
        there = files_of(hub, f"anna/{name}")
        assert {path: (Path(place) / path).read_bytes() for path in there} == there


def test_the_card_says_what_the_hub_and_other_people_need(
    hub: HubServer, made: Path, samples: Path, tmp_path: Path
) -> None:
    """The base's licence, the relation, and a snippet that loads the adapter as it came back."""
    hub.add(BASE, {"README.md": CARD, "config.json": "{}"})
    push(hub, tmp_path / "here", made / "combined", "anna/combined", "--with-card", "--public").ok()
    there = files_of(hub, "anna/combined")
    card = there["README.md"].decode()
    data = ModelCard(card).data.to_dict()
    assert data["base_model"] == BASE
    assert data["base_model_relation"] == "adapter"
    assert data["license"] == "apache-2.0"
    assert there["lora_lab_spectrum.png"].startswith(b"\x89PNG")
    assert not hub.store.repositories["anna/combined"].private
    for name, content in there.items():
        (tmp_path / name).write_bytes(content)
    snippet = card.partition("```python\n")[2].partition("```")[0]
    places = {f'"{BASE}"': repr(str(samples / "base")), '"anna/combined"': repr(str(tmp_path))}
    for name, place in places.items():
        assert name in snippet
        snippet = snippet.replace(name, place)
    names: dict[str, Any] = {}
    exec(snippet, names)
    ids = names["tokenizer"]("set an alarm", return_tensors="pt").input_ids
    with torch.no_grad():
        adapted = names["model"](input_ids=ids).logits
        with names["model"].disable_adapter():
            plain = names["model"](input_ids=ids).logits
    assert (adapted - plain).abs().max() > 0.01


def test_what_is_there_already_is_not_committed_again(desk: Desk, small: Path) -> None:
    first = desk.push(small, "mine")["document"]
    assert first["repository"] == "anna/mine"
    again = desk.push(small, "mine")
    assert again["verdict"] is True
    assert again["document"]["commit"] == first["commit"]
    assert "nothing_to_send" in codes(again)
    assert len(desk.hub.requests.matching("POST /api/models/anna/mine/commit/")) == 1


def test_a_card_of_the_repository_is_taken_up(desk: Desk, made: Path) -> None:
    """Words that somebody wrote on the web stay, below the recipe is added; and private stays private."""
    hub = desk.hub
    hub.add("anna/merged", {"README.md": "---\nlicense: mit\n---\n# By hand\n"}, private=True)
    said = desk.push(made / "merged", "anna/merged", keep_card=False, public=True)
    card = files_of(hub, "anna/merged")["README.md"].decode()
    assert "# By hand" in card
    assert "license: mit" in card
    assert "## Recipe" in card
    assert said["document"]["visibility"] == "private"
    assert hub.store.repositories["anna/merged"].private
    assert "visibility_stays" in codes(said)


# Branches and pull requests


def test_a_branch_is_made_and_main_stays(desk: Desk, small: Path) -> None:
    hub = desk.hub
    before = hub.add("anna/branched", {"README.md": "# Old\n"})
    assert desk.push(small, "anna/branched", revision="next")["document"]["new_branch"] is True
    assert files_of(hub, "anna/branched") == {"README.md": b"# Old\n"}
    assert "adapter_model.safetensors" in files_of(hub, "anna/branched", "next")
    assert hub.store.repositories["anna/branched"].refs["main"] == before
    assert desk.push(small, "anna/new", revision="next")["verdict"] is True
    assert "adapter_model.safetensors" in files_of(hub, "anna/new", "next")


def test_a_pull_request_on_what_belongs_to_others(desk: Desk, small: Path) -> None:
    hub = desk.hub
    hub.add("bert/it", {"README.md": "# Bert's\n"})
    assert "--create-pr" in desk.push(small, "bert/it")["hint"]
    told = desk.push(small, "bert/it", create_pr=True)["document"]
    assert told["pull_request"] == f"{hub.url}/bert/it/discussions/1"
    assert files_of(hub, "bert/it") == {"README.md": b"# Bert's\n"}
    assert "adapter_model.safetensors" in files_of(hub, "bert/it", "refs/pr/1")


def test_a_pull_request_by_the_other_transport(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add("bert/it", {"README.md": "# Bert's\n"})
    assert push(hub, tmp_path, small, "bert/it", "--create-pr").ok().json["pull_request"]
    assert "adapter_model.safetensors" in files_of(hub, "bert/it", "refs/pr/1")


# Who may, and where


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "no token"), ("hf_wrong", "does not accept the token"), ("hf_reads", "may only read")],
)
def test_a_token_that_cannot_push_is_told_before_anything_is_sent(
    hub: HubServer, small: Path, tmp_path: Path, token: str | None, said: str
) -> None:
    ran = push(hub, tmp_path, small, "anna/it", token=token)
    assert ran.code == 3
    assert said in ran.err
    assert ran.out == ""
    assert token is None or token not in ran.err
    assert not hub.requests.matching("POST|PUT")


def test_repositories_that_cannot_be_pushed_to(desk: Desk, small: Path) -> None:
    """Each has its own sentence, and nothing is sent to any of them."""
    hub = desk.hub
    hub.add("bert/public", {"README.md": "x"})
    hub.add("bert/secret", {"README.md": "x"}, private=True)
    hub.add("anna/old", {"README.md": "x"})
    hub.rename("anna/old", "anna/newer")
    hub.requests.clear()
    for repository, said in {
        "bert/public": "belongs to 'bert'",
        "bert/secret": "'bert' is another account",
        "anna/old": "was renamed to 'anna/newer'",
    }.items():
        assert said in desk.push(small, repository)["error"]
    assert "no pull request can be opened" in desk.push(small, "bert/secret", create_pr=True)["error"]
    assert not hub.requests.matching("^(POST|PUT)")


def test_a_gated_repository_of_ones_own_takes_a_push(desk: Desk, small: Path) -> None:
    desk.hub.add("anna/gated", {"README.md": "# Gated\n"}, gated="manual")
    assert desk.push(small, "anna/gated")["verdict"] is True


def test_a_base_that_the_hub_does_not_have_is_told(desk: Desk, small: Path) -> None:
    """Of a name of one word too, to which a server may say 404 and no more; the samples' own is such a one."""
    for name in ("anna/nowhere", "base"):
        said = desk.push(small, "anna/based", base_model=name, dry_run=True)["document"]
        assert "base_not_found" in {one["code"] for one in said["warnings"]}, name
        assert said["base_models"] == [name]
    refused = desk.push(small, "anna/based", base_model=None, dry_run=True)
    assert "names the base model 'base', which is on this machine" in refused["error"]
    assert "--base-model" in refused["hint"]


def test_a_name_that_is_taken_meanwhile_is_told(desk: Desk, small: Path) -> None:
    desk.hub.faults.add("POST /api/repos/create", status=409, body="taken", headers={"X-Error-Message": "You have it"})
    error = desk.push(small, "anna/taken")["error"]
    assert "'anna/taken' is taken" in error
    assert "Nothing was committed" in error


# Two at once


def test_of_two_pushes_at_once_one_is_told_and_nothing_is_overwritten(
    hub: HubServer, small: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(small, tmp_path / "other"))
    (other / "README.md").write_text("# The other\n")
    hub.add("anna/it", {"README.md": "# Old\n"})
    hub.faults.add("POST /api/models/anna/it/commit/", delay_seconds=1.5, times=2)
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            # Not through Xet, whose store in a folder lets in one process at a time.
            pool.submit(push, hub, tmp_path / name, folder, "anna/it", xet=False)
            for name, folder in (("a", small), ("b", other))
        ]
        ran = [job.result() for job in jobs]
    assert sorted(one.code for one in ran) == [0, 3]
    loser = next(one for one in ran if one.code == 3)
    winner = ran[0] if ran[0].code == 0 else ran[1]
    assert "was changed by someone else" in loser.err
    assert "Nothing was committed to 'anna/it'." in loser.err
    assert "under way" not in loser.err
    commits = hub.store.repositories["anna/it"].refs["main"]
    assert winner.json["commit"] == commits


# Lines that are cut

CUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "whoami": ("GET /api/whoami-v2", {"cut_after": 5}),
    "looking": ("GET /api/models/anna/IT", {"cut_after": 5, "times": 9}),
    "making it": ("POST /api/repos/create", {"cut_upload_after": 5}),
    "made, and no reply": ("POST /api/repos/create", {"lose_reply": True}),
    "looking at what was made": ("GET /api/models/anna/IT$", {"cut_after": 5}),
    "the card": ("POST /api/validate-yaml", {"cut_upload_after": 5}),
    "asking how": ("POST /api/models/anna/IT/preupload", {"cut_upload_after": 5}),
    "asking where": (r"POST /anna/IT\.git/info/lfs", {"status": 403}),
    "the bytes": ("PUT /", {"cut_upload_after": 1000}),
    "the bytes, refused": ("PUT /", {"status": 403}),
    "the commit": ("POST /api/models/anna/IT/commit", {"cut_upload_after": 5}),
    "committed, and no reply": ("POST /api/models/anna/IT/commit", {"lose_reply": True}),
    "a failing commit": ("POST /api/models/anna/IT/commit", {"status": 503}),
    "looking at it afterwards": ("GET /api/models/anna/IT/revision", {"cut_after": 5, "times": 9}),
}


@pytest.mark.parametrize("cut", CUTS)
def test_nothing_half_made_is_claimed_when_the_line_is_cut(desk: Desk, small: Path, tmp_path: Path, cut: str) -> None:
    """Whatever is said is what is there: everything, or nothing; and a commit is never sent twice."""
    hub, (pattern, what) = desk.hub, CUTS[cut]
    name = f"anna/cut-{list(CUTS).index(cut)}"
    fault = hub.faults.add(pattern.replace("anna/IT", name), **what)
    said = desk.push(_others(small, tmp_path / "other", list(CUTS).index(cut)), name)
    hub.faults.clear()
    assert fault.hits, f"nothing asked for {pattern}"
    repository = hub.store.repositories.get(name)
    there = {} if repository is None else files_of(hub, name)
    assert set(there) in (set(), {"README.md", "adapter_config.json", "adapter_model.safetensors"})
    assert len(hub.requests.matching(f"POST /api/models/{name}/commit")) <= 1
    if repository is not None and there:
        assert said["document"]["commit"] == repository.refs["main"]
        assert said["verdict"] is (None if cut == "looking at it afterwards" else True)
        assert ("reply_lost" in codes(said)) == (cut == "committed, and no reply")
    else:
        was_looking = cut in ("whoami", "looking")
        assert was_looking or "othing was committed" in said["error"]
        was_told = cut != "made, and no reply"
        assert ("was made and is empty" in said["error"]) == (repository is not None and was_told)


def _others(folder: Path, place: Path, number: int) -> Path:
    """A copy with other weights, which no server has yet."""
    shutil.copytree(folder, place)
    weights = place / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([number]))
    return place


# On a terminal, and without one


def test_without_a_terminal_it_refuses_unless_told(hub: HubServer, small: Path, tmp_path: Path) -> None:
    words = ("push", str(small), "anna/it", "--base-model", BASE, "--keep-card")
    ran = hub.run_lab(*words, home=tmp_path, token="hf_anna")
    assert ran.code == 2
    assert "no terminal to ask on" in ran.err
    shown = hub.run_lab(*words, "--dry-run", home=tmp_path, token="hf_anna").ok()
    assert "# Mine" in shown.out
    assert "anna/it" not in hub.store.repositories


@pytest.mark.parametrize(("answer", "code"), [("n", 130), ("y", 0)])
def test_on_a_terminal_it_asks_once(hub: HubServer, small: Path, tmp_path: Path, answer: str, code: int) -> None:
    words = ["push", str(small), "anna/it", "--base-model", BASE, "--keep-card"]
    settings = environment(endpoint=hub.url, home=tmp_path, token="hf_anna")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_lab", *words], env=settings, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE
    )
    os.close(theirs)
    shown = _until(ours, "[y/N]")
    assert "private anna/it" in shown
    assert "hf_anna" not in shown
    os.write(ours, f"{answer}\n".encode())
    _drain(ours)
    assert process.wait(timeout=60) == code
    assert ("anna/it" in hub.store.repositories) == (code == 0)
    assert process.stdout is not None
    process.stdout.close()
    os.close(ours)


def _until(descriptor: int, wanted: str, seconds: float = 60.0) -> str:
    shown, end = "", time.monotonic() + seconds
    while wanted not in shown and time.monotonic() < end:
        if select.select([descriptor], [], [], 0.2)[0]:
            shown += os.read(descriptor, 4096).decode(errors="replace")
    assert wanted in shown, shown
    return shown


def _drain(descriptor: int) -> None:
    """Read on, or the program would wait for room to write."""
    while True:
        try:
            if not select.select([descriptor], [], [], 20.0)[0] or not os.read(descriptor, 4096):
                return
        except OSError:  # the other end is closed
            return


def test_what_changed_after_it_was_shown_is_not_pushed(hub: HubServer, small: Path, tmp_path: Path) -> None:
    code = f"""
        import json
        from lora_lab import Session, LoraLabError
        from huggingface_hub import HfApi
        session = Session(cache=False)
        wish = dict(folder={str(small)!r}, repository="anna/it", base_model={BASE!r}, keep_card=True)
        plan = session.push(**wish, dry_run=True).to_json()["plan"]
        HfApi().create_repo("anna/it")
        try:
            session.push(**wish, expected=plan)
        except LoraLabError as error:
            print(error.message)
    """
    ran = hub.run_python(code, home=tmp_path, token="hf_anna").ok()
    assert "no longer what was shown" in ran.out
    assert files_of(hub, "anna/it") == {}


def test_cancelling_takes_less_than_a_second_and_nothing_is_committed(
    hub: HubServer, small: Path, tmp_path: Path
) -> None:
    """While bytes are on their way and the server does not answer."""
    hub.faults.add("PUT /", delay_seconds=20.0)
    code = f"""
        import json, sys, time
        from lora_lab import Session
        from lora_lab.errors import CancelledError
        class Watcher:
            since = None
            def advance(self, done, total, what=""):
                if what == "sending" and self.since is None:
                    self.since = time.monotonic() + 0.5
            def rows(self, table, rows): pass
            def is_cancelled(self):
                return self.since is not None and time.monotonic() > self.since
        watcher = Watcher()
        try:
            Session(cache=False).push({str(small)!r}, "anna/it", base_model={BASE!r}, keep_card=True, observer=watcher)
        except CancelledError as error:
            print(json.dumps([time.monotonic() - watcher.since, error.hint]))
    """
    seconds, hint = hub.run_python(code, home=tmp_path, token="hf_anna", xet=False).ok().json
    assert seconds < 1.0
    assert "nothing was committed" in hint
    assert files_of(hub, "anna/it") == {}


def test_ctrl_c_stops_it_within_a_second(hub: HubServer, small: Path, tmp_path: Path) -> None:
    """The interrupt of a terminal goes to everyone in the group; what is there is said."""
    hub.faults.add("PUT /", delay_seconds=20.0)
    words = ["push", str(small), "anna/it", "--base-model", BASE, "--keep-card", "--yes"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_lab", *words],
        env=environment(endpoint=hub.url, home=tmp_path, token="hf_anna", xet=False),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 60.0
    while not hub.requests.matching("info/lfs") and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.3)
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, shown = process.communicate(timeout=30)
    assert time.monotonic() - begun < 1.0
    assert process.returncode == 130
    assert "nothing was committed" in shown
    assert files_of(hub, "anna/it") == {}


def test_the_token_goes_to_no_other_host_and_is_never_shown(hub: HubServer, small: Path, tmp_path: Path) -> None:
    token = "hf_" + "x" * 30
    hub.add_account(token, "anna")
    ran = push(hub, tmp_path, small, "anna/it", token=token, xet=False).ok()
    assert token not in ran.out + ran.err
    assert not [seen for seen in hub.requests.matching("PUT", origin="storage") if seen.authorized]
    withheld = hub.run_lab(
        *("push", str(small), "anna/it", "--yes", "--keep-card", "--base-model", BASE),
        home=tmp_path,
        token=token,
        more={"HF_ENDPOINT": "http://hub.example.org"},
    )
    assert withheld.code == 3
    assert "not sent to 'hub.example.org'" in withheld.err


def test_json_is_one_document_with_everything(hub: HubServer, small: Path, tmp_path: Path) -> None:
    document = json.loads(push(hub, tmp_path, small, "anna/it").ok().out)
    assert document["schema"] == "lora-lab/1"
    assert document["command"] == "push"
    assert document["account"] == "anna"
    assert document["card"] == "# Mine\n"
    assert document["bytes_to_send"] == sum(row["size_bytes"] for row in document["files"])
    assert "path" in document["inputs"][0]
