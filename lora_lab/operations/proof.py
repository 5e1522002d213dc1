"""By what the base behind a merged model is known to be the one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.domain.progress import Unwatched
from lora_lab.domain.report import Finding
from lora_lab.errors import quoted
from lora_lab.linalg.verification import Diagnosis
from lora_lab.operations.verify import verify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.extension.contracts import Reader
    from lora_lab.operations.ancestry import Told
    from lora_lab.operations.options import MergeOptions

_SHOWN: Final = 3
_EQUAL: Final = "equal tensors, where none was changed"
_SOUND: Final = frozenset(code.value for code in Diagnosis if code.is_sound)


class _Cancellable(Unwatched):
    """Asks an observer whether it is still wanted, and tells it nothing."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def is_cancelled(self) -> bool:
        """Whether the observer no longer wants it."""
        return self._observer.is_cancelled()


def proven_by(
    base: Base,
    merged: Base,
    told: Told | None,
    adapters: Sequence[Adapter],
    options: MergeOptions,
    reader: Reader,
    observer: Observer,
) -> tuple[str, list[Finding]]:
    """Say by what a base is known to be the one behind `merged`, and what is not proven.

    That nothing speaks against it, :func:`~lora_lab.operations.ancestry.require_behind` has established before.
    A receipt has the sha256 of every tensor that was changed. Without one, W + Δ of the base and the adapters is held
    against the merged model, tensor by tensor, as ``verify`` does.
    """
    if told is not None and any(told.touched.values()):
        return "sha256 in the receipt", []
    if told is not None or not adapters:
        return _EQUAL, []
    found = verify(
        merged, base=base, adapters=adapters, options=options, reader=reader, observer=_Cancellable(observer)
    )
    if found.verdict:
        return "W + Δ, which is the merged model", []
    rows = [row for row in found.table("modules").rows if row["diagnosis"] not in _SOUND]
    shown = ", ".join(f"{quoted(row['tensor'])} ({row['diagnosis']})" for row in rows[:_SHOWN])
    return _EQUAL, [
        Finding(
            "unproven_base",
            f"Without a receipt {quoted(base.name)} is not proven to be what {quoted(merged.name)} was merged from: "
            f"in {len(rows)} tensors W + Δ of the adapters is not what is there: {shown}"
            f"{' …' if len(rows) > _SHOWN else ''}.",
        )
    ]
