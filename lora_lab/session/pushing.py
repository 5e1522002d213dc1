"""How a session shares what was made: a plan, then one commit on the Hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.domain.progress import Unwatched, stop_if_cancelled
from lora_lab.domain.report import Finding
from lora_lab.errors import LoraLabError, OperationError, quoted
from lora_lab.session.records import Fingerprints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report
    from lora_lab.domain.sharing import CardFacts, Target
    from lora_lab.operations.push import PushPlan
    from lora_lab.sources.hub import Hub


class Pushing(ABC):
    """Pushes what a session can open."""

    _cache_folder: Path | None

    @property
    @abstractmethod
    def hub(self) -> Hub:
        """The Hub, as this session may ask it."""

    @abstractmethod
    def open(self, locator: str) -> Adapter | Base:
        """Open whatever is there."""

    @abstractmethod
    def spectrum(self, locator: str, *, modules: Sequence[str] = (), observer: Observer | None = None) -> Report:
        """Compute singular values."""

    def push(
        self,
        folder: str | Path,
        repository: str,
        *,
        public: bool = False,
        create_pr: bool = False,
        revision: str | None = None,
        base_model: str | None = None,
        licence: str | None = None,
        message: str = "",
        keep_card: bool = False,
        dry_run: bool = False,
        expected: str | None = None,
        observer: Observer | None = None,
    ) -> Report:
        """Push an adapter or a model to the Hub, in one commit, with a page that says what it is.

        Parameters
        ----------
        folder : of one adapter or model, on this machine
        repository : ``org/name``, or ``name`` for one of one's own
        public : make a new repository public; one that is there stays what it is
        create_pr : propose it as a pull request
        revision : branch, made where it is not there; main when not given
        base_model : name on the Hub of the model that was adapted, where the files do not say
        licence : stated instead of the base's
        message : of the commit, instead of one made from the receipt
        keep_card : send README.md as it is
        dry_run : say what would be sent, and send nothing
        expected : the plan that somebody said yes to, as a dry run named it; another one is not carried out
        observer : told of bytes, and asked whether to go on

        Raises
        ------
        LoraLabError
            something must not or cannot be sent, and nothing was.
        HubError
            the Hub said no, or could not be reached; says what is there.
        """
        from lora_lab.operations.push import PushOptions
        from lora_lab.operations.push_report import report_of
        from lora_lab.operations.pushing import carry_out
        from lora_lab.sources.hub_upload import Sender

        watcher = observer or Unwatched()
        if not Path(folder).is_dir():
            raise LoraLabError(f"{quoted(folder)} is no folder, expected that of one adapter or model.")
        options = PushOptions(public, create_pr, base_model, licence, keep_card, message)
        if dry_run:
            return report_of(self._planned(str(folder), repository, revision, options, watcher, dry_run=True))
        with Sender() as sender:
            plan = self._planned(str(folder), repository, revision, options, watcher, dry_run=False)
            if expected is not None and plan.id != expected:
                raise OperationError(
                    f"What would be pushed to {quoted(plan.target.repository)} is no longer what was shown, and "
                    "nothing was sent.",
                    hint="Look at it again.",
                )
            stop_if_cancelled(watcher)
            return carry_out(plan, self.hub.access, sender, watcher)

    def _planned(
        self, folder: str, repository: str, revision: str | None, options: Any, observer: Observer, *, dry_run: bool
    ) -> PushPlan:
        from lora_lab.operations.push import plan_push, weights_of
        from lora_lab.operations.push_hashing import Hashes
        from lora_lab.sources.hub_target import card_facts, look, named_target

        subject = self.open(folder)
        access = self.hub.access
        target: Target = named_target(repository, revision, access.endpoint)
        is_asked = not access.is_offline
        if not is_asked and not dry_run:
            raise LoraLabError(
                f"Nothing can be pushed to {quoted(target.repository)} without asking the Hub.",
                hint="Drop --offline and HF_HUB_OFFLINE; --dry-run shows what would be sent.",
            )
        known: dict[str, CardFacts | None] = {}

        def facts(name: str) -> CardFacts | None:
            if name not in known:
                known[name] = card_facts(name, access, is_cancelled=observer.is_cancelled)
            return known[name]

        with Hashes(Fingerprints(self._cache_folder).of) as hashes:
            hashes.begin(weights_of(subject))  # while the Hub is asked
            if is_asked:
                target = look(target, access, create_pr=options.create_pr, is_cancelled=observer.is_cancelled)
            return plan_push(
                subject,
                target,
                options,
                facts=facts if is_asked else None,
                hashes=hashes,
                observer=observer,
                pictured=lambda: self._pictured(folder, target.repository, observer),
            )

    def _pictured(
        self, folder: str, name: str, observer: Observer
    ) -> tuple[Report | None, bytes | None, tuple[Finding, ...]]:
        """The spectrum of an adapter, and its picture where matplotlib is there."""
        from lora_lab.reports.canvas import as_file, drawing, require_matplotlib

        try:
            report = self.spectrum(folder, observer=observer)
        except OperationError:
            raise
        except LoraLabError as error:
            return None, None, (Finding("no_spectrum", f"The card shows no spectrum: {error.message}"),)
        try:
            require_matplotlib()
            from lora_lab.reports.figures import spectra_figure

            with drawing():
                return report, as_file(spectra_figure(report, name).figure, ".png"), ()
        except LoraLabError as error:
            told = f"The card shows no figure: {error.message} {error.hint}".rstrip()
            return report, None, (Finding("no_figure", told),)
