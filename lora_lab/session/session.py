"""A session: what a person allows, what is installed, and everything that can be asked."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

from lora_lab.domain.base import Base
from lora_lab.errors import LoraLabError, PluginError, quoted
from lora_lab.extension.registry import Registry, load_registry
from lora_lab.session import listing
from lora_lab.session.comparing import Comparing
from lora_lab.session.extracting import Extracting
from lora_lab.session.guarded import attributed
from lora_lab.session.inspection import inspect_adapter, inspect_base
from lora_lab.session.library import Library, scan_repository
from lora_lab.session.looking import Looking
from lora_lab.session.measuring import Measuring
from lora_lab.session.opening import Opening
from lora_lab.session.partial import parts_of
from lora_lab.session.placing import InMebibytes, existing
from lora_lab.session.pulling import Pulling
from lora_lab.session.pushing import Pushing
from lora_lab.session.shelving import Shelving
from lora_lab.sources.kept import Kept
from lora_lab.sources.locators import parse
from lora_lab.storage.folders import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lora_lab.domain.library import LibraryEntry
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report


class Session(Opening, Looking, Comparing, Extracting, Measuring, Pulling, Pushing, Shelving):
    """Opens, lists and analyses adapters and bases.

    Parameters
    ----------
    device : auto, cpu, cuda, cuda:N or mps; where analyses compute
    seed : of everything that draws at random
    offline : never ask the Hub, use what is cached
    allow_pickle : convert ``.bin`` files, weights only, in a process of their own
    follow_symlinks : read files that a link leads to outside an adapter's folder
    alpha : for adapters whose configuration does not say
    cache : remember listings and results of unchanged files
    plugins : load plugins from outside
    send_token_to : hosts beside the Hub's own that its token may be sent to, over https

    Examples
    --------
    >>> session = Session()
    >>> "spectrum" in session.registry.analyses
    True
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        seed: int = 0,
        offline: bool = False,
        allow_pickle: bool = False,
        follow_symlinks: bool = False,
        alpha: float | None = None,
        cache: bool = True,
        plugins: bool = True,
        send_token_to: Sequence[str] = (),
    ) -> None:
        if alpha is not None and not math.isfinite(alpha):
            raise LoraLabError(f"alpha is {alpha}, expected a finite number.", hint="A usual value is the rank.")
        self.device = device
        self.seed = seed
        self.offline = offline
        self.allow_pickle = allow_pickle
        self.follow_symlinks = follow_symlinks
        self.alpha = alpha
        self.load_plugins = plugins
        self.send_token_to = tuple(send_token_to)
        self._cache_folder = cache_folder() if cache else None
        self._remote_models = {}
        self._kept_ranges = Kept() if cache else None

    @cached_property
    def registry(self) -> Registry:
        """What is installed; loaded on first use."""
        from lora_lab.analyses import plugin as analyses
        from lora_lab.benchmarks import plugin as benchmarks
        from lora_lab.formats import plugin as formats
        from lora_lab.methods import plugin as methods
        from lora_lab.reports import plugin as reports

        builtins = {
            "formats": formats,
            "analyses": analyses,
            "methods": methods,
            "benchmarks": benchmarks,
            "reports": reports,
        }
        return load_registry(builtins, load_plugins=self.load_plugins)

    # Looking

    def scan(self, locator: str = ".") -> Iterator[LibraryEntry]:
        """List what a folder holds, one entry at a time, from headers alone; a broken one carries its reason."""
        found = parse(locator)
        if not found.is_local:
            return scan_repository(self, found)
        return Library(self, existing(found), self._cache_folder).scan()

    def ls(self, locator: str = ".") -> Report:
        """List what a folder holds."""
        return listing.ls_report(locator, tuple(self.scan(locator)))

    def inspect(self, locator: str, *, modules: Sequence[str] = (), observer: Observer | None = None) -> Report:
        """Say everything that an adapter's or a base's own files say; no torch is needed.

        Parameters
        ----------
        modules : globs that restrict the rows; none means all
        """
        subject = self.open(locator, observer=InMebibytes(observer))
        if not isinstance(subject, Base):
            return inspect_adapter(subject, modules)
        return inspect_base(subject, modules, remote=parts_of([subject], self._remote_models))

    def spectrum(self, locator: str, *, modules: Sequence[str] = (), observer: Observer | None = None) -> Report:
        """Compute the singular values of every module's ΔW, and what follows from them."""
        return self.analyze("spectrum", [locator], modules=modules, observer=observer)

    def report(
        self,
        locators: Sequence[str],
        *,
        output: Path,
        base: str | None = None,
        figure: str | None = None,
        modules: Sequence[str] = (),
        overwrite: bool = False,
        observer: Observer | None = None,
    ) -> Report:
        """Write a page about adapters, or one of its figures, and say what was written.

        Parameters
        ----------
        locators : of one adapter or more
        output : ``.html`` for the page; ``.png``, ``.svg`` or ``.pdf`` for one figure
        base : locator of the base model, for what is said against its weights
        figure : name of the figure
        modules : globs; none means all
        overwrite : replace `output` when it is there

        Raises
        ------
        LoraLabError
            there is something at `output`, its ending is unknown, matplotlib is missing, or nothing can be computed.
        """
        from lora_lab.session.reporting import write_report

        return write_report(
            self,
            locators,
            base=base,
            output=output,
            figure=figure,
            modules=modules,
            overwrite=overwrite,
            observer=observer,
        )

    # What is installed

    def export(self, report: Report, exporter: str) -> bytes:
        """Write `report` as the file that an installed exporter makes of it.

        Parameters
        ----------
        exporter : id of an entry of ``registry.exporters``

        Raises
        ------
        LoraLabError
            there is no such exporter.
        PluginError
            a plugin's exporter failed.
        """
        self.require_exporter(exporter)
        owner = self.registry.plugin_of("exporters", exporter)
        with attributed("exporter", exporter, owner):
            content: object = self.registry.exporters[exporter].export(report)
            if not isinstance(content, bytes):
                raise PluginError(
                    f"The exporter {quoted(exporter)} of the plugin {quoted(owner.name)} returned "
                    f"{quoted(type(content).__name__)}, expected bytes.",
                    hint="Tell the plugin's author.",
                )
        return content

    def require_exporter(self, exporter: str) -> None:
        """Refuse the name of an exporter that is not installed, before work is done for it."""
        if exporter not in self.registry.exporters:
            known = ", ".join(self.registry.exporters)
            raise LoraLabError(f"There is no exporter {quoted(exporter)}, expected one of: {known}.")

    def plugins(self) -> Report:
        """List every plugin, what it adds, where it comes from and whether it loaded."""
        return listing.plugins_report(self.registry)

    def analyses(self) -> Report:
        """List every analysis with its parameters."""
        return listing.analyses_report(self.registry)

    def methods(self) -> Report:
        """List every method of combining with its parameters."""
        return listing.methods_report(self.registry)

    def strategies(self) -> Report:
        """List every strategy of swapping."""
        return listing.strategies_report(self.registry)
