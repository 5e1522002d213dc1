"""Sending files to the Hub in one commit, by a child process, and looking at what arrived."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, Self

from lora_lab.domain.sharing import Landed
from lora_lab.errors import CancelledError, HubError, quoted
from lora_lab.sources.hub_access import quiet_client
from lora_lab.sources.hub_refusals import persistently, refusal_of
from lora_lab.sources.hub_target import remote_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.progress import Observer
    from lora_lab.domain.sharing import Outgoing, RemoteFile, Target
    from lora_lab.sources.hub_access import HubAccess

MADE_AND_EMPTY: Final = "was made and is empty; nothing was committed"
_TICK_SECONDS: Final = 0.05
_SHOWN_STDERR: Final = 300
_PHASES: Final = {
    "create": "making the repository",
    "branch": "making the branch",
    "upload": "sending",
    "commit": "committing",
}


@dataclass(frozen=True, slots=True)
class Shipment:
    """What is sent where, as a person said yes to it."""

    target: Target
    access: HubAccess
    files: Sequence[Outgoing]
    message: str
    description: str
    is_public: bool
    create_pr: bool

    def to_json(self) -> dict[str, Any]:
        """The request to the child."""
        return {
            "send_token_to": list(self.access.send_token_to),
            "repository": self.target.repository,
            "revision": self.target.revision,
            "parent": self.target.parent,
            "create": not self.target.exists,
            "private": not self.is_public,
            "branch": self._needs_branch,
            "create_pr": self.create_pr,
            "message": self.message,
            "description": self.description,
            "files": [_file(file) for file in self.files],
        }

    @property
    def _needs_branch(self) -> bool:
        if self.target.exists:
            return self.target.is_new_branch
        return self.target.revision != "main"


class Sender:
    """The process that sends, started before it is needed: it loads its libraries while the plan is made.

    Used in a ``with`` block; at its end the process is gone, whatever it was doing.
    """

    def __init__(self) -> None:
        self._phase = ""
        self._was_created = False
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads would block it
        # Its bars are all that the client tells of a transfer; they are drawn where nobody sees them.
        environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "0", "TQDM_POSITION": "-1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lora_lab.sources.hub_upload_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=environment,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()
        self._stderr.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def send(self, shipment: Shipment, observer: Observer) -> Landed:
        """Send everything, in one commit.

        Raises
        ------
        CancelledError
            the observer, or Ctrl-C, asked for it; says how far it had come.
        UnsettledError
            the commit was asked for, and nobody knows whether it was made.
        HubError
            the Hub said no, or the connection broke; says what is there.
        """
        total = sum(file.size_bytes for file in shipment.files)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is gone, which is told below
            self._process.stdin.write(json.dumps(shipment.to_json()) + "\n")
            self._process.stdin.flush()
        try:
            return self._follow(shipment, observer, total)
        except KeyboardInterrupt:
            raise CancelledError("Cancelled.", hint=self._standing(shipment)) from None

    def _follow(self, shipment: Shipment, observer: Observer, total: int) -> Landed:
        """Pass progress on until it is over."""
        while True:
            if observer.is_cancelled():
                raise CancelledError("Cancelled.", hint=self._standing(shipment))
            try:
                line = self._lines.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                continue
            if line is None:
                raise self._died(shipment)
            event = json.loads(line)
            if "phase" in event:
                self._phase = event["phase"]
                observer.advance(total if self._phase == "commit" else 0, total, _PHASES[self._phase])
            elif "done" in event:
                observer.advance(event["done"], total, _PHASES["upload"])
            elif "created" in event:
                self._was_created = True
            elif "landed" in event:
                landed = event["landed"]
                return Landed(landed["commit"], landed["url"], landed["pull_request"])
            else:
                raise self._refused(event, shipment)

    def _refused(self, event: Mapping[str, Any], shipment: Shipment) -> HubError:
        if not event["is_settled"]:
            return UnsettledError(event["error"], hint=event["hint"])
        return HubError(f"{event['error']} {self._standing(shipment, is_answered=True)}", hint=event["hint"])

    def _died(self, shipment: Shipment) -> HubError:
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - _SHOWN_STDERR))
        words = self._stderr.read().decode(errors="replace").strip().splitlines()
        kind = UnsettledError if self._phase == "commit" else HubError
        return kind(
            f"The process that sends ended with code {self._process.wait()}. {self._standing(shipment)}",
            hint=words[-1] if words else "",
        )

    def _standing(self, shipment: Shipment, *, is_answered: bool = False) -> str:
        """What is there, so far; a commit that the Hub answered with a no is not."""
        shown = quoted(shipment.target.repository)
        if self._phase == "commit" and not is_answered:
            return f"The commit was under way; whether it arrived stands on {shipment.target.url}"
        if self._was_created:
            return f"{shown} {MADE_AND_EMPTY}."
        return f"Nothing was committed to {shown}."


class UnsettledError(HubError):
    """The commit was asked for and not answered."""


def arrived(
    target: Target, files: Sequence[Outgoing], access: HubAccess, *, commit: str | None
) -> tuple[str, dict[str, bool | None]]:
    """Which of `files` the repository has with the bytes that were sent.

    Parameters
    ----------
    commit : to look at; None: the head of the branch

    Returns
    -------
    the commit looked at, and by name whether the hashes agree; None where nothing tells

    Raises
    ------
    LoraLabError
        the Hub could not be asked.
    """
    api = access.api()
    revision = commit or target.revision
    try:
        with quiet_client():
            info = persistently(lambda: api.model_info(target.repository, revision=revision, files_metadata=True))
    except Exception as error:
        raise refusal_of(error, target.repository, access, doing="be looked at") from None
    there = remote_files(info)
    return str(info.sha), {file.name: _is_there(there.get(file.name), file) for file in files}


def _is_there(remote: RemoteFile | None, file: Outgoing) -> bool | None:
    return False if remote is None else remote.is_of(file)


def _file(file: Outgoing) -> dict[str, Any]:
    stamp = file.stamp
    return {
        "name": file.name,
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "path": file.path,
        "stamp": None if stamp is None else [stamp.size_bytes, stamp.mtime_ns, stamp.inode],
        "content": None if file.content is None else file.content.hex(),
    }
