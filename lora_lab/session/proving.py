"""What a session proves: that a model is what it should be, and that a receipt gives the same bytes again."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_lab.session.changing import Changing
from lora_lab.session.records import Fingerprints, record_of
from lora_lab.sources.locators import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Unpack

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Finding, InputRecord, Report
    from lora_lab.extension.registry import Registry
    from lora_lab.operations.receipt_file import ReceiptFile
    from lora_lab.operations.replay import Recipe
    from lora_lab.session.changing import How
    from lora_lab.sources.hub import Hub

_LARGEST: Final = 1 << 53  # of a whole number that a float holds
_RESUMED: Final = ("merge", "unmerge", "swap")
_RENAMED: Final = {"from": "from_adapters", "to": "to_adapters"}


class Proving(Changing):
    """Verifies models and replays receipts."""

    alpha: float | None

    @property
    @abstractmethod
    def hub(self) -> Hub:
        """The Hub."""

    @property
    @abstractmethod
    def registry(self) -> Registry:
        """What is installed."""

    @abstractmethod
    def _to_be_proven(self, locator: str, observer: Observer | None) -> Base:
        """Open a model, or an adapter with a receipt."""

    def verify(
        self,
        merged: str,
        *,
        base: str | None = None,
        adapters: Sequence[str] = (),
        observer: Observer | None = None,
        **how: Unpack[How],
    ) -> Report:
        """Prove that a merged model is what it should be: hashes against its receipt, and the arithmetic itself.

        Parameters
        ----------
        merged : locator of the model, whoever made it
        base, adapters : locators; with them every tensor is compared with W + Σ wᵢ(W′ᵢ − W). With a base alone the
            adapters are those that the receipt of a merge names, where they are what they were
        how : the merge was made; not needed where its receipt is there; see :class:`How`

        Returns
        -------
        ``verdict`` True, False, or None where nothing could be established

        Raises
        ------
        LoraLabError
            something cannot be read or does not fit.
        """
        from lora_lab.formats.factors import FactorReader
        from lora_lab.operations.verify import verify

        model = self._to_be_proven(merged, observer)
        opened = [self.adapter(locator, observer=observer) for locator in adapters]
        behind = None if base is None else self.base(base, whole=True, observer=observer)
        missing: list[Finding] = []
        if behind is not None and not opened:
            opened, missing = self._named_by_receipt(model, observer)
        strengths = tuple(how.get("strengths", ()))
        is_told = any(value for name, value in how.items() if name != "strengths")
        with self._hashing(*opened, model, behind) as hashing:
            report = verify(
                model,
                base=behind,
                adapters=opened,
                strengths=strengths,
                options=self._options(how) if is_told else None,
                missing=missing,
                reader=FactorReader(allow_nonfinite=True),  # what is not finite must come out so, which is compared
                observer=observer,
            )
            return hashing.stamp(report, {})

    def replay(
        self,
        receipt: str | Path,
        *,
        output: str | Path,
        overwrite: bool = False,
        resume: bool = False,
        observer: Observer | None = None,
    ) -> Report:
        """Do again what a receipt tells of, and compare every file with it.

        Parameters
        ----------
        receipt : the file, or the folder that it stands in
        output : the folder to appear

        Returns
        -------
        ``verdict`` whether every file has the same bytes

        Raises
        ------
        LoraLabError
            an input is not what it was, and nothing was written; or the operation fails.
        """
        from lora_lab.operations.receipt import RECEIPT
        from lora_lab.operations.receipt_file import read_receipt
        from lora_lab.operations.replay import replay

        place = Path(receipt)
        file = place / RECEIPT if place.is_dir() else place
        opener = _as_then(self, read_receipt(file))

        def run(recipe: Recipe, target: Path) -> Report:
            session = copy.copy(opener)
            session.seed = recipe.arguments.get("seed", self.seed)
            session.device = recipe.arguments.get("device", self.device)
            keywords = {_RENAMED.get(name, name): value for name, value in recipe.keywords.items()}
            if recipe.operation in _RESUMED:
                keywords["resume"] = resume
            again: Callable[..., Report] = getattr(session, recipe.operation)  # one of REPLAYED
            return again(**keywords, output=target, overwrite=overwrite, observer=observer)

        return replay(
            file,
            Path(output),
            record=opener._record,
            run=run,
            plugins=self.registry.plugins,
        )

    def _named_by_receipt(self, merged: Base, observer: Observer | None) -> tuple[list[Adapter], list[Finding]]:
        """The adapters that the receipt beside a model names; what it says was given for opening them is given."""
        from lora_lab.operations.receipt_file import find_receipt, read_receipt
        from lora_lab.operations.recorded import recorded_adapters

        place = find_receipt(merged.path)
        if place is None:
            return [], []
        receipt = read_receipt(place)
        opener = _as_then(self, receipt)

        def opened(locator: str, revision: str | None) -> Adapter:
            opener._pin(locator, revision)
            return opener.adapter(locator, observer=observer)

        return recorded_adapters(receipt, opened)

    def _pin(self, locator: str, revision: str | None) -> None:
        """Let a locator mean for this session what it meant when a revision was read."""
        if revision is not None and not (found := parse(locator)).is_local:
            self.hub.pin(found, revision)

    def _record(self, locator: str, revision: str | None) -> InputRecord:
        self._pin(locator, revision)
        return record_of(self.open(locator, whole=True), is_whole=True, fingerprints=Fingerprints(self._cache_folder))


def _as_then(session: Proving, receipt: ReceiptFile) -> Proving:
    """`session`, with the alpha that was said when the receipt was written; whatever else it is, is no alpha."""
    opener = copy.copy(session)
    said = receipt.arguments.get("alpha")
    if (type(said) is float and math.isfinite(said)) or (type(said) is int and abs(said) < _LARGEST):
        opener.alpha = said
    return opener
