"""Which model of the Hub an adapter was trained on: others cannot load it by a path of this machine."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.report import Finding
from lora_lab.errors import LoraLabError, quoted
from lora_lab.operations.push_privacy import is_local_place

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_lab.domain.base import Base
    from lora_lab.domain.sharing import CardFacts

    Facts = Callable[[str], CardFacts | None]

_BASE_FIELD: Final = "base_model_name_or_path"
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")


def base_of_adapter(
    subject: Adapter | Base, folder: Path, given: str | None, facts: Facts | None
) -> tuple[str | None, dict[str, str], list[Finding]]:
    """Name on the Hub of the base, what adapter_config.json says instead of a path, and what is odd about it.

    Parameters
    ----------
    given : the name that a person stated
    facts : asks the Hub for the page of a repository; None where nobody may be asked

    Raises
    ------
    LoraLabError
        no base is named, or one that is on this machine alone.
    """
    if given is not None and not _NAME.fullmatch(given):
        raise LoraLabError(f"The base model {quoted(given)} is no name of the Hub, expected org/name.")
    if not isinstance(subject, Adapter):
        return given, {}, []
    named = subject.base_model
    if given is None:
        if not named:
            raise LoraLabError(
                "adapter_config.json names no base model, and nobody could load the adapter.",
                hint="Say which it is: --base-model org/name",
            )
        if not _NAME.fullmatch(named) or is_local_place(named):
            raise _local_base(named)
    base = given or named or ""
    known = facts(base) if facts is not None else None
    is_here = os.path.lexists(base) or os.path.lexists(folder.parent / base)
    if given is None and known is None and (is_here or (facts is not None and "/" not in base)):
        raise _local_base(base)
    findings = []
    if facts is None and given is None and "/" not in base:
        said = f"Whether the Hub has a base model called {quoted(base)} was not asked; --base-model names another."
        findings.append(Finding("base_unchecked", said))
    if facts is not None and known is None:
        said = f"The Hub shows no model {quoted(base)} to this account; others may not be able to load the adapter."
        findings.append(Finding("base_not_found", said))
    return base, {} if base == named else {_BASE_FIELD: base}, findings


def _local_base(named: str) -> LoraLabError:
    return LoraLabError(
        f"adapter_config.json names the base model {quoted(named)}, which is on this machine and not on the Hub.",
        hint="Say which model of the Hub it is: --base-model org/name",
    )
