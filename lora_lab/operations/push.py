"""A push: what would be sent where, complete before a byte leaves, and what became of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.report import Finding
from lora_lab.domain.sharing import FileState, Outgoing, Target
from lora_lab.errors import CompatibilityError, quoted
from lora_lab.operations.push_base import base_of_adapter
from lora_lab.operations.push_card import card_for, kept_card, own_card
from lora_lab.operations.push_contents import contents_of, metadata_findings
from lora_lab.operations.push_files import LeftOut, choose

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.operations.push_base import Facts
    from lora_lab.operations.push_card import Pictured
    from lora_lab.operations.push_hashing import Hashes


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
    base_models: tuple[str, ...] = ()

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
    hashes: Hashes,
    pictured: Pictured,
    observer: Observer,
) -> PushPlan:
    """Work out what is sent.

    Parameters
    ----------
    subject : a folder's adapter or model
    facts : asks the Hub what the page of a repository says, None for one that it does not show; no function where
        nobody may be asked
    hashes : of large files, perhaps begun already
    pictured : computes the figures of an adapter's card
    observer : told of bytes that are hashed, and asked whether to go on

    Raises
    ------
    LoraLabError
        something must not be sent, or the card cannot be written; one sentence that names the file.
    """
    is_model = not isinstance(subject, Adapter)
    folder = Path(subject.path) if Path(subject.path).is_dir() else Path(subject.path).parent
    weights = [path.name for path in weights_of(subject)]
    _require_pushable(subject, folder, weights)
    own = own_card(folder)
    chosen, left_out = choose(folder, weights, is_model=is_model, card=own)
    base, replaced, odd = base_of_adapter(subject, folder, options.base_model, facts)
    contents = contents_of(chosen, replaced=replaced, hashes=hashes, observer=observer)
    if options.keep_card:
        card = kept_card(own, base)
    else:
        card = card_for(
            *(subject, target, contents),
            own=own,
            base=base,
            licence=options.licence,
            facts=facts,
            pictured=pictured,
        )
    made = {file.name for file in card.files}
    files = (*(file for file in contents.files if file.name not in made), *card.files)
    message, description = _message(is_model=is_model, receipt=contents.published_receipt)
    findings = (*odd, *contents.findings, *metadata_findings(subject.metadata), *card.findings)
    return PushPlan(
        *(subject.locator, str(folder.absolute()), target, options, files, tuple(left_out), card.text),
        *(options.message or message, description),
        findings=(*findings, *_code_findings(subject), *_target_findings(target, options, files, own)),
        base_models=card.bases,
    )


def weights_of(subject: Adapter | Base) -> list[Path]:
    """The files that hold its tensors."""
    stamps = subject.files if isinstance(subject, Adapter) else subject.shards
    return [Path(one.path) for one in stamps if one.path.endswith(".safetensors")]


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


def _code_findings(subject: Adapter | Base) -> list[Finding]:
    if not subject.configuration.get("auto_map"):
        return []
    said = (
        "The configuration asks for Python files (auto_map), and code is not sent: transformers alone cannot load it."
    )
    return [Finding("code_left_out", said)]


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
