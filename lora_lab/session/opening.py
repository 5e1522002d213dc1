"""How a session opens what a person names: a folder, a file, or a place on the Hub."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.domain import figures
from lora_lab.domain.progress import Unwatched
from lora_lab.domain.report import Finding
from lora_lab.errors import AdapterError, LoraLabError, OperationError, quoted
from lora_lab.extension.contracts import ReadOptions
from lora_lab.formats.opening import is_configuration, open_adapter, open_base, open_configuration
from lora_lab.operations.receipt_file import find_receipt
from lora_lab.session import listing
from lora_lab.session.guarded import guarded_formats
from lora_lab.session.no_model import require_no_adapter, require_no_adapter_of_hub
from lora_lab.session.partial import opened
from lora_lab.session.placing import Place, existing
from lora_lab.sources.hub_cache import commit_of
from lora_lab.sources.locators import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.extension.registry import Registry
    from lora_lab.sources.hub import Hub
    from lora_lab.sources.remote import RemoteModel


class Opening(ABC):
    """Opens adapters and models."""

    offline: bool
    send_token_to: tuple[str, ...]
    allow_pickle: bool
    follow_symlinks: bool
    alpha: float | None
    _cache_folder: Path | None
    _remote_models: dict[str, RemoteModel]  # those that were opened, by place

    @property
    @abstractmethod
    def registry(self) -> Registry:
        """What is installed."""

    @cached_property
    def hub(self) -> Hub:
        """The Hub, as this session may ask it."""
        from lora_lab.sources.hub import Hub
        from lora_lab.sources.hub_access import HubAccess

        return Hub(HubAccess(self.offline, self.send_token_to), self._cache_folder)

    def words(self) -> dict[str, Any]:
        """What was said for opening inputs that most people do not want, as receipts keep it; empty as a rule."""
        alpha = {} if self.alpha is None else {"alpha": self.alpha}
        return alpha | ({"allow_pickle": True} if self.allow_pickle else {})

    def adapter(self, locator: str, *, observer: Observer | None = None) -> Adapter:
        """Open an adapter: headers and configuration.

        Parameters
        ----------
        locator : a folder, a file, or a place on the Hub, whose files are fetched
        observer : told of bytes that are fetched

        Raises
        ------
        LoraLabError
            nothing there, or not an adapter that can be read; one sentence and the next step.
        """
        if not parse(locator).is_local and self._is_checkpoint(locator):
            raise AdapterError(
                f"{quoted(locator)} is a full checkpoint, expected an adapter.", hint="Give a model as --base."
            )
        found = self._place(locator, observer=observer)
        place = found.path
        options = ReadOptions(
            locator=locator,
            name=found.name or _name(place),
            allow_pickle=self.allow_pickle,
            alpha=self.alpha,
            follow_symlinks=self.follow_symlinks,
        )
        mishaps: list[str] = []
        try:
            adapter = open_adapter(place, guarded_formats(self.registry, mishaps), options)
        except LoraLabError as error:
            error.hint = " ".join([error.hint, *mishaps]).strip()  # a plugin that failed may be the one to read it
            raise
        findings = (*found.findings, *adapter.findings, *(Finding("plugin_failed", mishap) for mishap in mishaps))
        return replace(adapter, findings=findings, revision=found.commit or adapter.revision)

    def base(self, locator: str, *, whole: bool = False, observer: Observer | None = None) -> Base:
        """Open a base model or a full fine-tune: headers of all its shards; a ``config.json`` alone has no tensors.

        Parameters
        ----------
        whole : have all files on this machine; without, only the headers of a model on the Hub are fetched, and its
            tensors when an analysis reads them
        observer : told of bytes that are fetched

        Raises
        ------
        LoraLabError
            nothing there, an adapter, or not a model that can be read; one sentence and the next step.
        """
        model = None if whole else self._in_parts(locator, observer)
        if model is not None:
            self._remote_models[model.place] = model
            return opened(model, locator, observer or Unwatched())
        named = parse(locator)
        if not named.is_local:
            require_no_adapter_of_hub(self.hub, named)
        found = self._place(locator, observer=observer)
        require_no_adapter(found.path, locator, guarded_formats(self.registry, []), self.adapter)
        return self._weights_at(found, locator)

    def _to_be_proven(self, locator: str, observer: Observer | None) -> Base:
        """Open a model; or an adapter with a receipt, which has hashes to be compared as well."""
        found = self._place(locator, observer=observer)
        if find_receipt(found.path) is None:
            return self.base(locator, whole=True, observer=observer)
        return self._weights_at(found, locator)

    def _weights_at(self, found: Place, locator: str) -> Base:
        """Open the tensors at a place, whatever they are of."""
        place = found.path
        if is_configuration(place) and not listing.is_checkpoint(place):
            base = open_configuration(place, locator=locator)
        else:
            base = open_base(place, locator=locator, name=found.name)
        return replace(base, findings=(*found.findings, *base.findings), revision=found.commit or base.revision)

    def open(self, locator: str, *, whole: bool = False, observer: Observer | None = None) -> Adapter | Base:
        """Open whatever is there: an adapter where a format knows one, else a checkpoint, `whole` as for one."""
        if self._is_checkpoint(locator):
            return self.base(locator, whole=whole, observer=observer)
        return self.adapter(locator, observer=observer)

    def _whole_base(self, locator: str, *, dry_run: bool, observer: Observer | None) -> Base:
        """Open a model all of whose files are on this machine; a dry run fetches none."""
        (base,) = self._whole_bases((locator,), dry_run=dry_run, observer=observer)
        return base

    def _whole_bases(self, locators: Sequence[str], *, dry_run: bool, observer: Observer | None) -> list[Base]:
        """Open models all of whose files are on this machine; a dry run fetches none.

        Raises
        ------
        OperationError
            it is a dry run, and some are not.
        """
        found = [(locator, self._in_parts(locator, observer)) for locator in dict.fromkeys(locators) if dry_run]
        missing = {locator: figures.size(model.missing_bytes) for locator, model in found if model is not None}
        if missing:
            told = " and ".join(f"{quoted(locator)} ({size})" for locator, size in missing.items())
            raise OperationError(
                f"{told} {'is' if len(missing) == 1 else 'are'} not on this machine and would be fetched, and a dry "
                "run fetches nothing.",
                hint=f"Fetch first: {'; '.join(f'lora-lab pull {locator}' for locator in missing)}",
            )
        return [self.base(locator, whole=True, observer=observer) for locator in locators]

    def _in_parts(self, locator: str, observer: Observer | None) -> RemoteModel | None:
        """The model on the Hub that is read in parts; None for what is here, or is fetched whole."""
        found = parse(locator)
        if found.is_local:
            return None
        from lora_lab.sources.hub_models import remote_model

        return remote_model(found, self.hub, self._cache_folder, observer)

    def _is_checkpoint(self, locator: str) -> bool:
        """Whether a locator is that of a full model, from names alone: nothing is fetched to find out."""
        found = parse(locator)
        if found.is_local:
            return listing.is_checkpoint(existing(found))
        listed = self.hub.listing(found)
        place = listed.place_of(found)
        if place != found.subfolder:
            return listing.is_checkpoint_file(found.subfolder.rpartition("/")[2])
        return listing.is_checkpoint_folder({file.name.rpartition("/")[2] for file in listed.beside(place)})

    def _place(self, locator: str, *, observer: Observer | None = None) -> Place:
        """The files that a locator stands for, on this machine."""
        found = parse(locator)
        if found.is_local:
            path = existing(found)
            return Place(path, commit_of(path))
        fetched = self.hub.fetch(found, allow_pickle=self.allow_pickle, observer=observer)
        name = found.subfolder.rpartition("/")[2] if fetched.path.is_dir() else ""
        return Place(fetched.path, fetched.commit, fetched.findings, name or found.repository.rpartition("/")[2])


def _name(place: Path) -> str:
    """What an adapter at `place` is called: its folder's name, or the file's own beside others."""
    whole = Path(os.path.abspath(place))  # noqa: PTH100 - the name as typed, not where a link leads
    is_named_by_folder = whole.name.startswith("adapter_") and whole.suffix
    return whole.parent.name if is_named_by_folder else whole.name
