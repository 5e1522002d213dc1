"""The process that sends: one request on stdin, events as lines of JSON on stdout.

A process of its own, because a transfer that runs can be stopped from outside alone. It makes the repository and the
branch where they are wanted, sends the bytes, looks whether the files are still those that were hashed, and then
commits once: a commit whose reply is lost is never sent again. It ends when its stdin does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TextIO

if TYPE_CHECKING:
    from lora_lab.sources.hub_access import HubAccess

_TICK_SECONDS: Final = 0.1
_WHOLE: Final = "Processing Files"  # what the storage's client calls the bar over all files


class Teller:
    """Writes events."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self.phase = "begin"

    def send(self, **event: Any) -> None:
        """One line."""
        with self._lock:
            self._stream.write(json.dumps(event) + "\n")
            self._stream.flush()

    def begin(self, phase: str) -> None:
        """Turn to the next step, which is told before it is done."""
        self.phase = phase
        self.send(phase=phase)


class Bars:
    """Adds up the progress bars that the client draws, which is all that it tells of a transfer."""

    def __init__(self, teller: Teller, total: int) -> None:
        self._teller, self._total = teller, total
        self._seen: dict[int, float] = {}
        self._done = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_TICK_SECONDS):
            done = min(self._total, int(self._counted()))
            if done > self._done:
                self._done = done
                self._teller.send(done=done)

    def _counted(self) -> float:
        from huggingface_hub.utils.tqdm import tqdm

        bars = [bar for bar in list(getattr(tqdm, "_instances", ())) if getattr(bar, "unit", "") == "B"]
        whole = next((bar for bar in bars if str(bar.desc).startswith(_WHOLE)), None)
        if whole is not None:
            return float(whole.n)
        for bar in bars:
            self._seen[id(bar)] = max(self._seen.get(id(bar), 0.0), float(bar.n))
        return sum(self._seen.values())


def push(request: dict[str, Any], access: HubAccess, teller: Teller) -> dict[str, Any]:
    """Send everything, in one commit; what became of it."""
    from huggingface_hub import CommitOperationAdd

    api = access.api()
    repository, revision, parent = request["repository"], request["revision"], request["parent"]
    if request["create"]:
        teller.begin("create")
        api.create_repo(repository, private=request["private"], exist_ok=False)
        teller.send(created=True)
        parent = api.model_info(repository).sha
    if request["branch"]:
        teller.begin("branch")
        api.create_branch(repository, branch=revision, revision=parent)
    operations = [_operation(CommitOperationAdd, file) for file in request["files"]]
    teller.begin("upload")
    with Bars(teller, sum(file["size_bytes"] for file in request["files"])):
        api.preupload_lfs_files(
            repository,
            operations,
            revision=revision,
            create_pr=request["create_pr"],
            free_memory=False,
        )
    _require_unchanged(request["files"])
    teller.begin("commit")
    landed = api.create_commit(
        repository,
        operations,
        commit_message=request["message"],
        commit_description=request["description"],
        revision=revision,
        create_pr=request["create_pr"],
        parent_commit=parent,
    )
    return {"commit": landed.oid, "url": landed.commit_url, "pull_request": landed.pr_url, "parent": parent}


def _operation(kind: Any, file: dict[str, Any]) -> Any:
    """One addition; the hash of a large file is known, so that nobody reads it once more."""
    if file["content"] is not None:
        return kind(path_in_repo=file["name"], path_or_fileobj=bytes.fromhex(file["content"]))
    operation = kind(path_in_repo=file["name"], path_or_fileobj=file["path"])
    operation.upload_info.sha256 = bytes.fromhex(file["sha256"])
    return operation


class _ChangedError(Exception):
    """A file is no longer the one that was hashed."""


def _require_unchanged(files: list[dict[str, Any]]) -> None:
    for file in files:
        if file["stamp"] is not None:
            now = Path(file["path"]).stat()
            if [now.st_size, now.st_mtime_ns, now.st_ino] != file["stamp"]:
                raise _ChangedError(file["name"])


def main() -> None:
    """Take the request, do it, tell of it."""
    from lora_lab.sources.hub_access import HubAccess
    from lora_lab.sources.hub_push_refusals import is_unanswered, push_refusal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the process that started this one
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(ImportError):
        import hf_xet  # noqa: F401 - while the plan is made
    import huggingface_hub.hf_api  # noqa: F401 - likewise

    line = sys.stdin.readline()
    if not line:
        return  # nothing was to be sent
    request = json.loads(line)
    threading.Thread(target=_until_orphaned, daemon=True).start()
    teller = Teller(events)
    access = HubAccess(send_token_to=tuple(request["send_token_to"]))
    try:
        teller.send(landed=push(request, access, teller))
    except _ChangedError as error:
        sentence = f"{str(error)!r} changed while it was sent: something else wrote to it."
        teller.send(error=sentence, hint="Wait until it is finished, then push again.", is_settled=True)
    except Exception as error:
        refusal = push_refusal(error, request["repository"], access)
        is_settled = teller.phase != "commit" or not is_unanswered(error)
        teller.send(error=refusal.message, hint=refusal.hint, is_settled=is_settled)
    events.flush()
    os._exit(0)  # threads of the storage's client need not be waited for


def _until_orphaned() -> None:
    """End when nobody waits any more."""
    while sys.stdin.readline():
        time.sleep(0)
    os._exit(1)


if __name__ == "__main__":
    main()
