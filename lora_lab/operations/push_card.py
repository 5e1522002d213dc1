"""The card of one push: the folder's own or the repository's taken up, or a new one."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.report import Finding
from lora_lab.domain.sharing import Origin
from lora_lab.errors import CompatibilityError, LoraLabError, quoted
from lora_lab.operations.card import card_of, inherited_licence, task_of_model
from lora_lab.operations.card_subject import CardSubject
from lora_lab.operations.push_contents import read_small, small
from lora_lab.operations.push_files import CARD
from lora_lab.operations.push_privacy import require_no_path, require_no_token
from lora_lab.operations.push_receipt import bases_of
from lora_lab.storage.files import inside

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from lora_lab.domain.base import Base
    from lora_lab.domain.report import Report
    from lora_lab.domain.sharing import Outgoing, Target
    from lora_lab.operations.push_base import Facts
    from lora_lab.operations.push_contents import Contents

    Pictured = Callable[[], tuple[Report | None, bytes | None, tuple[Finding, ...]]]

FIGURE: Final = "lora_lab_spectrum.png"
_MOST_CARD_BYTES: Final = 4 << 20
_TOKENIZER: Final = frozenset({"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.txt"})


@dataclass(frozen=True)
class Card:
    """The card, the files that it is made of, and what a person should know of it."""

    text: str
    files: tuple[Outgoing, ...]
    bases: tuple[str, ...]
    findings: tuple[Finding, ...] = ()


def own_card(folder: Path) -> str | None:
    """README.md of the folder, once it is known to tell nothing that it should not.

    Raises
    ------
    UnsafeFileError
        it is a link that leaves the folder, or holds an access token or a path of this machine.
    CompatibilityError
        it is too long for a page, or no text.
    """
    if not os.path.lexists(folder / CARD):
        return None
    path = inside(folder, CARD)
    content = read_small(path)
    if len(content) > _MOST_CARD_BYTES:
        raise CompatibilityError(
            f"{quoted(CARD)} has {len(content)} bytes, more than the {_MOST_CARD_BYTES} of a page."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CompatibilityError(f"{quoted(path)} is no UTF-8 text.", hint="Save it as UTF-8.") from None
    require_no_token(CARD, text)
    require_no_path(CARD, text)
    return text


def kept_card(own: str | None, base: str | None) -> Card:
    """The folder's own card as it is.

    Raises
    ------
    LoraLabError
        there is none.
    """
    if own is None:
        raise LoraLabError("There is no README.md to keep.", hint="Leave --keep-card out, and one is written.")
    return Card(own, (small(CARD, own.encode(), Origin.FOLDER),), (base,) if base else ())


def card_for(
    subject: Adapter | Base,
    target: Target,
    contents: Contents,
    *,
    own: str | None,
    base: str | None,
    licence: str | None,
    facts: Facts | None,
    pictured: Pictured,
) -> Card:
    """Write the card, or take up the one that is there.

    Parameters
    ----------
    own : of the folder, which goes before the repository's
    base : name on the Hub of the model that was adapted, where it is known
    licence : stated by a person; the base's where there is none
    facts : asks the Hub for the page of a repository; None where nobody may be asked
    pictured : computes an adapter's spectrum and draws it
    """
    about, others = _subject(subject, target, contents, base)
    findings: list[Finding] = []
    if about.is_model and not about.bases:
        said = "The card names no base model: no file says which one on the Hub it is; --base-model org/name does."
        findings.append(Finding("base_model_unknown", said))
    stated, more = _licence(licence, (*about.bases, *others), facts)
    report, picture, seen = (None, None, ()) if about.is_model else pictured()
    about = replace(about, licence=stated, spectrum=report, figure=FIGURE if picture else "")
    text = card_of(about, own if own is not None else target.card)
    origin = Origin.MADE if own is None else Origin.FOLDER if own == text else Origin.REWRITTEN
    files = [small(CARD, text.encode(), origin), *([small(FIGURE, picture, Origin.MADE)] if picture else [])]
    return Card(text, tuple(files), about.bases, (*findings, *more, *seen))


def _subject(
    subject: Adapter | Base, target: Target, contents: Contents, base: str | None
) -> tuple[CardSubject, Sequence[str]]:
    """What the card is about, and the adapters on the Hub that went into it."""
    behind, adapters = bases_of(contents.receipt) if contents.receipt else ([], [])
    others = [name.partition("@")[0] for name in adapters]
    bases = [base] if base else [name.partition("@")[0] for name in behind]
    is_model = not isinstance(subject, Adapter)
    if is_model and len(others) > 1:
        bases = [*bases, *others]
    task = task_of_model(subject.configuration) if is_model else subject.configuration.get("task_type")
    about = CardSubject(
        target.repository,
        is_model,
        tuple(dict.fromkeys(bases)),
        task if isinstance(task, str) else None,
        receipt=contents.published_receipt,
        has_tokenizer=bool(_TOKENIZER & {file.name for file in contents.files}),
    )
    return about, others


def _licence(
    stated: str | None, sources: Collection[str], facts: Facts | None
) -> tuple[Mapping[str, str], tuple[Finding, ...]]:
    if stated:
        return {"license": stated}, ()
    if facts is None:
        return {}, (Finding("no_licence", "The card states no licence: the Hub was not asked."),)
    known = [found for found in map(facts, dict.fromkeys(sources)) if found is not None]
    return inherited_licence(known)
