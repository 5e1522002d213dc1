"""The page of a repository: what the Hub's filters read, and text that other people understand.

Front matter goes through PyYAML. A card that is there is a person's own: its front matter keeps every key that it has,
its text every word; what is made here stands between two marks, and only that is replaced when it is made again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import yaml

from lora_lab.domain.report import Finding
from lora_lab.errors import FileFormatError, quoted
from lora_lab.operations.card_body import body_of
from lora_lab.safetext import safe_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.sharing import CardFacts
    from lora_lab.operations.card_subject import CardSubject

BEGIN: Final = "<!-- lora-lab: begin. What stands up to the end mark is made anew by each push. -->"
END: Final = "<!-- lora-lab: end -->"
_MARKED: Final = re.compile(r"<!-- lora-lab: begin\b.*?-->.*?<!-- lora-lab: end -->", re.DOTALL)
_FRONT: Final = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)(?:^|\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
LICENCE_KEYS: Final = ("license", "license_name", "license_link")
_PIPELINES: Final = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
_HEADS: Final = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def task_of_model(configuration: Mapping[str, Any]) -> str | None:
    """What a model does, by the head that its config.json names; None where it does not say."""
    architectures = configuration.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    return next((task for head, task in _HEADS.items() if isinstance(named, str) and named.endswith(head)), None)


def metadata_of(subject: CardSubject) -> dict[str, Any]:
    """Front matter; what is not known is not there."""
    adapted = [f"base_model:adapter:{base}" for base in subject.bases] if not subject.is_model else []
    if subject.is_model:
        tags = ["merge", "lora-lab"] if subject.receipt is not None else ["lora-lab"]
    else:
        tags = [*adapted, "lora", "transformers", "lora-lab"]
    found: dict[str, Any] = {
        "base_model": subject.bases[0] if len(subject.bases) == 1 else list(subject.bases),
        "base_model_relation": subject.relation if subject.bases else None,
        "library_name": "transformers" if subject.is_model else "peft",
        "pipeline_tag": _PIPELINES.get(subject.task or ""),
        **{key: subject.licence.get(key) for key in LICENCE_KEYS},
        "tags": tags,
    }
    return {key: value for key, value in found.items() if value}


def inherited_licence(sources: Sequence[CardFacts]) -> tuple[dict[str, str], tuple[Finding, ...]]:
    """The licence that all that it was made of share, or none and the reason.

    Parameters
    ----------
    sources : the base and, where they are on the Hub, the adapters
    """
    stated = [source for source in sources if source.licence.get("license")]
    if not stated:
        said = (
            f"the page of {quoted(sources[0].repository)} states none" if sources else "nothing is known of the base's"
        )
        return {}, (
            Finding("no_licence", f"The card states no licence: {said}. --license states one, if you know it."),
        )
    kinds = {tuple(sorted(source.licence.items())) for source in stated}
    if len(kinds) > 1:
        each = ", ".join(f"{quoted(one.repository)} has {safe_text(one.licence['license'])}" for one in stated)
        return {}, (
            Finding("licences_differ", f"The card states no licence: {each}. --license states the one that holds."),
        )
    return dict(stated[0].licence), ()


def card_of(subject: CardSubject, present: str | None, *, place: str = "README.md") -> str:
    """The card: made where there is none, else the one that is there with what it lacks.

    Parameters
    ----------
    present : text of the card that is there
    place : what that card is called in a sentence

    Raises
    ------
    FileFormatError
        the front matter of the card that is there is no YAML mapping.
    """
    body = f"{BEGIN}\n\n{body_of(subject).strip()}\n\n{END}\n"
    metadata = metadata_of(subject)
    if present is None or not present.strip():
        title = safe_text(subject.name).replace("_", r"\_")
        return f"{_fenced(metadata)}\n# {title}\n\n{body}"
    text = present.replace("\r\n", "\n")
    known, rest = split_card(text, place=place)
    added = {key: value for key, value in metadata.items() if key not in known}
    if any(key in known for key in LICENCE_KEYS):
        added = {key: value for key, value in added.items() if key not in LICENCE_KEYS}
    front = _FRONT.match(text)
    kept = front[1].rstrip("\n") if front else ""
    lines = "\n".join(part for part in (kept, _yaml(added).rstrip("\n") if added else "") if part)
    if _MARKED.search(rest):
        rest = _MARKED.sub(lambda _: body.rstrip("\n"), rest, count=1)
    else:
        rest = f"{rest.rstrip()}\n\n{body}" if rest.strip() else f"\n{body}"
    return f"---\n{lines}\n---\n{rest}"


def split_card(text: str, *, place: str = "README.md") -> tuple[dict[str, Any], str]:
    """Front matter and text of a card.

    Raises
    ------
    FileFormatError
        the front matter is no YAML mapping.
    """
    found = _FRONT.match(text)
    if found is None:
        return {}, text
    try:
        known = yaml.safe_load(found[1]) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 2}" if mark is not None else ""
        raise FileFormatError(
            f"The front matter of {quoted(place)} is no YAML{where}.",
            hint="Mend what stands between its two --- lines.",
        ) from None
    if not isinstance(known, dict):
        raise FileFormatError(f"The front matter of {quoted(place)} is no YAML mapping, expected key: value lines.")
    return {str(key): value for key, value in known.items()}, text[found.end() :]


def _fenced(metadata: Mapping[str, Any]) -> str:
    return f"---\n{_yaml(metadata)}---\n"


def _yaml(values: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000)
    return text
