"""A push: what would be sent where, complete before a byte leaves, and what became of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.report import Finding
from lora_lab.domain.sharing import CardFacts, FileState, Origin, Outgoing, Target
from lora_lab.errors import CompatibilityError, LoraLabError, quoted
from lora_lab.operations.card import CardSubject, card_of, inherited_licence, task_of_model
from lora_lab.operations.push_contents import contents_of, metadata_findings, read_small, small
from lora_lab.operations.push_files import CARD, LeftOut, choose
from lora_lab.operations.push_privacy import is_local_place, require_no_path, require_no_token
from lora_lab.operations.push_receipt import bases_of
from lora_lab.storage.files import inside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_lab.domain.base import Base
    from lora_lab.domain.report import Report
    from lora_lab.operations.push_contents import Contents

    Facts = Callable[[str], CardFacts | None]

FIGURE: Final = "lora_lab_spectrum.png"
_BASE_FIELD: Final = "base_model_name_or_path"
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
_MOST_CARD_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class PushOptions:
    """What a person decides about a push.

    base_model : name on the Hub of the model that was adapted, where the files do not say
    licence : stated in the card instead of the base's
    keep_card : send README.md as it is
    message : of the commit; made from the receipt where it is empty
    """

    is_public: bool = False
    create_pr: bool = False
    base_model: str | None = None
    licence: str | None = None
    keep_card: bool = False
    message: str = ""


@dataclass(frozen=True)
class PushPlan:
    """Everything that would be sent, and where."""

    source: str
    folder: str
    target: Target
    options: PushOptions
    files: tuple[Outgoing, ...]
    left_out: tuple[LeftOut, ...]
    card: str
    message: str
    description: str = ""
    findings: tuple[Finding, ...] = ()
    base_models: tuple[str, ...] = field(default=())

    @property
    def files_to_send(self) -> tuple[Outgoing, ...]:
        """Those that the repository does not have yet under their names."""
        return tuple(file for file in self.files if self.target.state_of(file) is not FileState.SAME)

    @property
    def bytes_to_send(self) -> int:
        """What they hold together."""
        return sum(file.size_bytes for file in self.files_to_send)

    @property
    def id(self) -> str:
        """Identity of what a person says yes to: the place, its state, and every byte."""
        place = [self.target.repository, self.target.endpoint, self.target.revision, self.target.parent]
        what = [[file.name, file.sha256] for file in self.files]
        wish = [self.target.exists, self.options.is_public, self.options.create_pr, self.message, self.description]
        return hashlib.sha256(json.dumps([place, what, wish]).encode()).hexdigest()[:16]


def plan_push(
    subject: Adapter | Base,
    target: Target,
    options: PushOptions,
    *,
    facts: Facts | None,
    sha256_of: Callable[[Path], str],
    spectrum: Callable[[], tuple[Report | None, bytes | None, tuple[Finding, ...]]],
) -> PushPlan:
    """Work out what is sent.

    Parameters
    ----------
    subject : a folder's adapter or model
    facts : asks the Hub what the page of a repository says, None for one that it does not show; no function where
        nobody may be asked
    sha256_of : hashes a large file
    spectrum : computes the card's figures, when a card is written

    Raises
    ------
    LoraLabError
        something must not be sent, or the card cannot be written; one sentence that names the file.
    """
    is_model = not isinstance(subject, Adapter)
    folder = Path(subject.path) if Path(subject.path).is_dir() else Path(subject.path).parent
    stamps = subject.files if isinstance(subject, Adapter) else subject.shards
    weights = [Path(one.path).name for one in stamps if one.path.endswith(".safetensors")]
    _require_pushable(subject, folder, weights)
    own_card = _own_card(folder)
    chosen, left_out = choose(folder, weights, is_model=is_model, card=own_card)
    base, replaced, base_findings = _base_of_adapter(subject, folder, options, facts)
    contents = contents_of(chosen, replaced=replaced, sha256_of=sha256_of)
    findings = [*base_findings, *contents.findings, *metadata_findings(subject.metadata)]
    names = {one.name for one in chosen}
    if options.keep_card:
        card_files, card, bases = [_kept_card(own_card)], own_card or "", (base,) if base else ()
    else:
        draft = _draft(subject, target, contents, base, options, names)
        licence, licence_findings = _licence(draft, contents, options, facts)
        report, picture, spectrum_findings = (None, None, ()) if is_model else spectrum()
        about = _described(draft, licence, report, FIGURE if picture else "")
        card = card_of(about, own_card if own_card is not None else target.card)
        card_files, bases = [small(CARD, card.encode(), _card_origin(own_card, card))], about.bases
        card_files += [small(FIGURE, picture, Origin.MADE)] if picture else []
        findings += [*licence_findings, *spectrum_findings]
    message, description = _message(is_model=is_model, receipt=contents.published_receipt)
    files = (*(file for file in contents.files if file.name != FIGURE or options.keep_card), *card_files)
    return PushPlan(
        *(subject.locator, str(folder.absolute()), target, options, files, tuple(left_out), card),
        *(options.message or message, description),
        findings=(*findings, *_target_findings(target, options, files, own_card)),
        base_models=bases,
    )


def _require_pushable(subject: Adapter | Base, folder: Path, weights: Sequence[str]) -> None:
    if not weights:
        raise CompatibilityError(
            f"{quoted(folder)} holds no safetensors weights, expected what others can open without trusting it."
        )
    if isinstance(subject, Adapter) and subject.format != "peft":
        raise CompatibilityError(
            f"{quoted(folder)} is an adapter of the format {quoted(subject.format)}, expected one that PEFT loads.",
            hint="Convert it first.",
        )


def _own_card(folder: Path) -> str | None:
    """README.md of the folder, once it is known to tell nothing that it should not."""
    if not os.path.lexists(folder / CARD):
        return None
    path = inside(folder, CARD)
    content = read_small(path)
    if len(content) > _MOST_CARD_BYTES:
        raise CompatibilityError(f"{quoted(CARD)} has {len(content)} bytes, more than the {_MOST_CARD_BYTES} of a page.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CompatibilityError(f"{quoted(path)} is no UTF-8 text.", hint="Save it as UTF-8.") from None
    require_no_token(CARD, text)
    require_no_path(CARD, text)
    return text


def _kept_card(own: str | None) -> Outgoing:
    if own is None:
        raise LoraLabError("There is no README.md to keep.", hint="Leave --keep-card out, and one is written.")
    return small(CARD, own.encode(), Origin.FOLDER)


def _card_origin(own: str | None, card: str) -> Origin:
    if own is None:
        return Origin.MADE
    return Origin.FOLDER if own == card else Origin.REWRITTEN


# The base


def _base_of_adapter(
    subject: Adapter | Base, folder: Path, options: PushOptions, facts: Facts | None
) -> tuple[str | None, dict[str, str], list[Finding]]:
    """Name on the Hub of the base, what adapter_config.json says instead of a path, and what is odd about it."""
    given = options.base_model
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
    if facts is not None and known is None:
        said = f"The Hub shows no model {quoted(base)} to this account; others may not be able to load the adapter."
        findings.append(Finding("base_not_found", said))
    return base, {} if base == named else {_BASE_FIELD: base}, findings


def _local_base(named: str) -> LoraLabError:
    return LoraLabError(
        f"adapter_config.json names the base model {quoted(named)}, which is on this machine and not on the Hub.",
        hint="Say which model of the Hub it is: --base-model org/name",
    )


# The card


@dataclass(frozen=True)
class _Draft:
    """What a card is about, before the Hub was asked for licences."""

    subject: CardSubject
    sources: tuple[str, ...]  # names of the Hub that the licence may come from
    adapters: tuple[str, ...] = ()


def _draft(
    subject: Adapter | Base,
    target: Target,
    contents: Contents,
    base: str | None,
    options: PushOptions,
    names: set[str],
) -> _Draft:
    receipt_bases, adapters = bases_of(contents.receipt) if contents.receipt else ([], [])
    plain = [name.partition("@")[0] for name in receipt_bases]
    bases = [base] if base else plain
    others = [name.partition("@")[0] for name in adapters]
    is_model = not isinstance(subject, Adapter)
    if is_model and len(others) > 1:
        bases = [*bases, *others]
    task = subject.configuration.get("task_type") if not is_model else task_of_model(subject.configuration)
    about = CardSubject(
        target.repository,
        is_model,
        tuple(dict.fromkeys(bases)),
        task if isinstance(task, str) else None,
        receipt=contents.published_receipt,
        has_tokenizer=bool(names & {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.txt"}),
    )
    return _Draft(about, tuple(dict.fromkeys([*bases, *others])), tuple(others))


def _licence(
    draft: _Draft, contents: Contents, options: PushOptions, facts: Facts | None
) -> tuple[Mapping[str, str], tuple[Finding, ...]]:
    if options.licence:
        return {"license": options.licence}, ()
    findings: tuple[Finding, ...] = ()
    if draft.subject.is_model and not draft.subject.bases:
        said = "The card names no base model: no file says which one on the Hub it is; --base-model org/name does."
        findings = (Finding("base_model_unknown", said),)
    if facts is None:
        return {}, (*findings, Finding("no_licence", "The card states no licence: the Hub was not asked."))
    known = [found for found in map(facts, draft.sources) if found is not None]
    licence, more = inherited_licence(known)
    return licence, (*findings, *more)


def _described(draft: _Draft, licence: Mapping[str, str], spectrum: Report | None, figure: str) -> CardSubject:
    from dataclasses import replace

    return replace(draft.subject, licence=licence, spectrum=spectrum, figure=figure)


def _message(*, is_model: bool, receipt: Mapping[str, Any] | None) -> tuple[str, str]:
    """One line for the history, and the recipe below it."""
    head = "Upload model" if is_model else "Upload adapter"
    if receipt is None:
        return head, ""
    arguments, operation = receipt.get("arguments") or {}, str(receipt.get("operation"))
    adapters, strengths = arguments.get("adapters") or [], arguments.get("strengths") or []
    if adapters and len(adapters) == len(strengths):
        terms = [f"{name}×{strength:g}" for name, strength in zip(adapters, strengths, strict=True)]
    else:
        terms = [str(name) for name in adapters]
    method = f", {arguments['method']}" if arguments.get("method") else ""
    recipe = f" ({operation}: {' + '.join(terms)}{method})" if terms else f" ({operation})"
    versions = ", ".join(f"{name} {text}" for name, text in (receipt.get("versions") or {}).items())
    told = json.dumps(arguments, ensure_ascii=False, sort_keys=True)
    return f"{head}{recipe}"[:200], f"{operation}: {told}\n\n{versions}"


def _target_findings(
    target: Target, options: PushOptions, files: Sequence[Outgoing], own_card: str | None
) -> list[Finding]:
    findings = []
    if target.exists is None:
        said = f"The Hub was not asked: whether {quoted(target.repository)} is there, and who may write to it."
        findings.append(Finding("not_asked", said))
    if target.exists and options.is_public and target.is_private:
        said = f"{quoted(target.repository)} is there already and private; --public does not change that."
        findings.append(Finding("visibility_stays", said))
    if target.exists and not options.is_public and target.is_private is False:
        said = f"{quoted(target.repository)} is there already and public: everyone will see what is sent."
        findings.append(Finding("is_public", said))
    if own_card is not None and target.card is not None and target.card != own_card:
        said = "README.md of the repository differs from the folder's, and is replaced; it stays in the history."
        findings.append(Finding("card_replaced", said))
    sent = {file.name for file in files}
    stale = sorted(name for name in target.files if name.endswith(".safetensors") and name not in sent)
    if stale:
        named = ", ".join(quoted(name) for name in stale[:3])
        said = f"{len(stale)} more files of weights stay in the repository: {named}."
        findings.append(Finding("weights_stay", said))
    return findings
