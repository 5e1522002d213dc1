"""How a session compares ways of combining: of a base on the Hub it reads what the adapters' changes are made with."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_lab.domain.progress import Unwatched
from lora_lab.session.arranging import Arranging
from lora_lab.session.devices import told_of_device
from lora_lab.session.partial import partial_findings, parts_of, reading
from lora_lab.session.placing import InMebibytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Unpack

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.operations.combine_options import CombineOptions
    from lora_lab.session.arranging import Combining
    from lora_lab.sources.kept import Kept
    from lora_lab.sources.remote import RemoteModel


class Comparing(Arranging):
    """Compares methods on what a session can open."""

    _remote_models: dict[str, RemoteModel]  # those that were opened, by place
    _kept_ranges: Kept | None  # what was last fetched of them

    @abstractmethod
    def base(self, locator: str, *, whole: bool = False, observer: Observer | None = None) -> Base:
        """Open a model."""

    def compare_methods(
        self,
        adapters: Sequence[str],
        *,
        strengths: Sequence[float] = (),
        methods: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        observer: Observer | None = None,
        **how: Unpack[Combining],
    ) -> Report:
        """Compute what every installed method would make of some adapters, and what it would lose; nothing is written.

        Parameters
        ----------
        strengths : wᵢ, one for each adapter; none means 1 each
        methods : ids, in the order of the rows; none means every one that is installed
        settings : parameters, for every method that has one of the name; ``METHOD.NAME`` is for one method alone
        how : as of :meth:`combine`; `modules` makes a sample of the whole

        Returns
        -------
        one row for each method: ranks, parameters, bytes, what is lost of what the method itself says, how far it is
        from the exact sum, or why it refuses; the observer is told of rows as they are ready

        Raises
        ------
        LoraLabError
            no method can combine these adapters, or there is no such method or parameter.
        """
        from lora_lab.formats.factors import FactorReader
        from lora_lab.operations.comparing_methods import compare_methods

        chosen = [self._method(name)[0] for name in methods or self.registry.methods]
        opened = self._opened(adapters, observer)
        options = self._options_of(how, strengths)
        behind, ahead = self._read_behind(how.get("base"), opened, options, observer)
        parts = parts_of([behind] if behind else [], self._remote_models)
        spool = None if self._cache_folder is None else self._cache_folder / "spool"
        with (
            self._hashed(*opened, behind, remote=parts) as hashing,
            reading(parts, ahead, observer or Unwatched(), spool, self._kept_ranges) as (files, telling),
        ):
            report = compare_methods(
                opened,
                chosen,
                reader=FactorReader(files),
                options=options,
                settings=settings,
                base=behind,
                observer=telling,
            )
            report = hashing.stamp(report, options.to_json())
        report = replace(report, findings=(*report.findings, *partial_findings(parts if ahead else ())))
        return told_of_device(report, self.device, "combine")

    def _read_behind(
        self,
        locator: str | None,
        adapters: Sequence[Adapter],
        options: CombineOptions,
        observer: Observer | None,
    ) -> tuple[Base | None, Sequence[TensorRef]]:
        """The base behind some adapters, and the weights of it that will be read.

        Where they are read once for each method and are more than a spool holds, they would be fetched as often: then
        the whole base comes here first.
        """
        from lora_lab.operations.behind import weights_behind
        from lora_lab.sources.spool import has_room_for

        if locator is None:
            return None, ()
        fetching = InMebibytes(observer)
        base = self.base(locator, observer=fetching)
        if not parts_of([base], self._remote_models):
            return base, ()
        ahead, is_read_again = weights_behind(base, adapters, options)
        if is_read_again and not has_room_for(ahead):
            return self.base(locator, whole=True, observer=fetching), ()
        return base, ahead
