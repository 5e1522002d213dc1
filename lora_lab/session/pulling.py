"""How a session brings files of the Hub to this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.domain.progress import Unwatched
from lora_lab.errors import LoraLabError, quoted
from lora_lab.session.records import Fingerprints

if TYPE_CHECKING:
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report
    from lora_lab.sources.hub import Hub


class Pulling(ABC):
    """Pulls what a locator names."""

    allow_pickle: bool
    _cache_folder: Path | None

    @property
    @abstractmethod
    def hub(self) -> Hub:
        """The Hub."""

    def pull(
        self,
        locator: str,
        *,
        revision: str | None = None,
        output: str | Path | None = None,
        overwrite: bool = False,
        dry_run: bool = False,
        observer: Observer | None = None,
    ) -> Report:
        """Fetch an adapter or a model from the Hub, check the hash of every file, and say where it is.

        Parameters
        ----------
        locator : ``org/name[@revision][:subfolder]``, ``hf://…`` or a link
        revision : branch, tag or commit, where the locator names none
        output : an ordinary folder to appear, whole or not at all; None leaves the files in the Hub's cache
        overwrite : replace `output` when it is there
        dry_run : say what would be fetched, and fetch nothing
        observer : told of bytes, and asked whether to go on

        Raises
        ------
        LoraLabError
            the locator is a path on this machine, or names another revision.
        HubError
            not found, not allowed, not reachable, or not the bytes that the Hub lists.
        OperationError
            the output exists, or the disk, or the observer, says no.
        """
        from lora_lab.operations.pull import PullTarget, pull
        from lora_lab.sources.locators import hub_locator, parse

        found = parse(locator)
        if found.is_local:
            elsewhere = hub_locator(locator)
            raise LoraLabError(
                f"{quoted(locator)} is a path on this machine, and pull fetches from the Hub.",
                hint=f"For the repository: hf://{locator}" if elsewhere else "Give org/name, hf://… or a link.",
            )
        if revision is not None:
            if found.revision is not None and found.revision != revision:
                raise LoraLabError(
                    f"{quoted(locator)} names a revision, and --revision another: {quoted(revision)}.",
                    hint="Give one of them.",
                )
            found = replace(parse(f"hf://{found.repository}@{revision}:{found.subfolder}"), text=locator)
        target = PullTarget(
            Fingerprints(self._cache_folder).of,
            None if output is None else Path(output),
            overwrite,
            dry_run,
            self.allow_pickle,
        )
        return pull(self.hub, found, target, observer or Unwatched())
