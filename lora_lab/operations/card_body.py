"""The text of a card: how to load it, how it was made, what is in it, what rounding left of it, how to check it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain import figures
from lora_lab.operations.receipt import RECEIPT
from lora_lab.safetext import safe_text
from lora_lab.sources.locators import hub_locator
from lora_lab.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_lab.operations.card_subject import CardSubject

_MOST_ROWS: Final = 8
_DIGITS: Final = 12  # of a hash, enough to tell inputs apart
_PAPER: Final = "https://arxiv.org/abs/2106.09685"
_HUB: Final = "https://huggingface.co"
_CLASSES: Final = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
_DONE: Final = {
    "merge": "merged",
    "unmerge": "unmerged",
    "swap": "swapped",
    "combine": "combined",
    "resize": "re-ranked",
    "extract": "extracted from a full fine-tune",
}
_TOLD_ELSEWHERE: Final = frozenset({"adapters", "from", "to", "base", "merged", "finetuned", "adapter", "undo"})
_STRENGTHS: Final = frozenset({"strengths", "strengths_from", "strengths_to"})
_SPECTRUM: Final = (
    ("module", "module"),
    ("rank", "r"),
    ("frobenius_norm", "‖ΔW‖_F"),
    ("spectral_norm", "σ₁"),
    ("stable_rank", "stable rank"),
    ("effective_rank", "effective rank"),
)
_FIDELITY: Final = (
    ("module", "module"),
    ("changed_fraction", "changed"),
    ("intended_norm", "‖Δ‖_F"),
    ("realised_norm", "‖W′−W‖_F"),
    ("realised_cosine", "cosine"),
    ("effective_strength", "strength that arrives"),
)
_ERRORS: Final = (
    ("module", "module"),
    ("rank", "r"),
    ("norm", "‖D‖_F"),
    ("relative_error", "relative error"),
)


def body_of(subject: CardSubject) -> str:
    """Everything below the title."""
    parts = [_what(subject), _use(subject)]
    if subject.receipt is not None:
        parts.append(_recipe(subject.receipt))
    if subject.spectrum is not None:
        parts.append(_spectrum(subject))
    if subject.receipt is not None:
        parts += [_fidelity(subject.receipt), _verify(subject, subject.receipt)]
    return "\n\n".join(part for part in parts if part)


def plain(text: object) -> str:
    """Text from a file, where Markdown and HTML would be obeyed."""
    shown = safe_text(text, limit=400)
    escaped = "".join(f"\\{letter}" if letter in r"\`*_{}[]#|~$" else letter for letter in shown)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: object) -> str:
    """Text from a file as code inside a line or a cell."""
    shown = safe_text(text, limit=400).replace("`", "'").replace("|", "\\|")
    return f"`{shown}`"


def _link(locator: str) -> str:
    """A name of the Hub as a link; any other name as code."""
    place = hub_locator(locator)
    return f"[{plain(locator)}]({_HUB}/{place.repository})" if place is not None else code(locator)


def _what(subject: CardSubject) -> str:
    bases = ", ".join(f"[{plain(base)}]({_HUB}/{base})" for base in subject.bases)
    operation = (subject.receipt or {}).get("operation")
    done = f", {_DONE[operation]}" if operation in _DONE else ""
    if subject.is_model:
        head = f"A model{done}" + (f", from {bases}" if bases else "")
    else:
        head = f"A [LoRA]({_PAPER}) adapter{done}" + (f", for {bases}" if bases else "")
    return f"{head}. This part of the page was written by lora-lab {__version__}."


# How to load it


def _use(subject: CardSubject) -> str:
    model_class = _CLASSES.get(subject.task or "", "AutoModel")
    here = json.dumps(subject.repository)
    if subject.is_model:
        names = [model_class, *(["AutoTokenizer"] if subject.has_tokenizer else [])]
        lines = [f"from transformers import {', '.join(sorted(names))}", ""]
        lines.append(f'model = {model_class}.from_pretrained({here}, dtype="auto")')
        if subject.has_tokenizer:
            lines.append(f"tokenizer = AutoTokenizer.from_pretrained({here})")
    elif subject.bases:
        base = json.dumps(subject.bases[0])
        lines = ["from peft import PeftModel", f"from transformers import {model_class}, AutoTokenizer"]
        lines[1] = f"from transformers import {', '.join(sorted((model_class, 'AutoTokenizer')))}"
        lines += ["", f'base = {model_class}.from_pretrained({base}, dtype="auto")']
        lines.append(f"model = PeftModel.from_pretrained(base, {here})")
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({here if subject.has_tokenizer else base})")
    else:
        return ""
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"


# How it was made


def _recipe(receipt: Mapping[str, Any]) -> str:
    arguments = receipt.get("arguments") or {}
    rows = [("operation", code(receipt.get("operation", "")))]
    rows += [(plain(key), _value(value)) for key, value in _settings(arguments)]
    versions = receipt.get("versions") or {}
    rows.append(("versions", ", ".join(f"{plain(name)} {plain(text)}" for name, text in versions.items())))
    parts = ["## Recipe", _table(("setting", "value"), rows), "What went in:", _inputs(receipt, arguments)]
    return "\n\n".join([*parts, f"The whole of it stands in [{RECEIPT}]({RECEIPT})."])


def _settings(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arguments that say something, but for inputs and strengths, which are told with them."""
    for key, value in arguments.items():
        if key not in _TOLD_ELSEWHERE | _STRENGTHS and value not in (None, [], {}, False):
            yield key, value


def _value(value: Any) -> str:
    return code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _inputs(receipt: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    strengths = _strengths_by_locator(arguments)
    roles = {"base": "base", "merged": "merged model", "finetuned": "fine-tune"}
    named = {arguments.get(key): role for key, role in roles.items() if isinstance(arguments.get(key), str)}
    rows = []
    for entry in receipt.get("inputs") or []:
        locator, revision = entry.get("locator", ""), entry.get("revision")
        shown = _link(locator) + (f" at {code(str(revision)[:_DIGITS])}" if revision else "")
        weights = [digest for name, digest in sorted((entry.get("sha256") or {}).items()) if "safetensors" in name]
        role = named.get(locator, "adapter")
        hashes = ", ".join(code(digest[:_DIGITS]) for digest in weights[:2]) + (" …" if len(weights) > 2 else "")
        rows.append((shown, role, strengths.get(locator, ""), hashes))
    return _table(("input", "as", "strength", "sha256 of its weights"), rows)


def _strengths_by_locator(arguments: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for names, strengths in (("adapters", "strengths"), ("from", "strengths_from"), ("to", "strengths_to")):
        places, values = arguments.get(names) or [], arguments.get(strengths) or []
        if isinstance(places, list) and isinstance(values, list) and len(places) == len(values):
            found |= {place: f"{value:g}" for place, value in zip(places, values, strict=True)}
    return found


# What is in it


def _spectrum(subject: CardSubject) -> str:
    report = subject.spectrum
    assert report is not None
    totals = next((dict(group.values) for group in report.scalars if group.id == "totals"), {})
    modules = [row for row in report.table("modules").rows if row.get("frobenius_norm") is not None]
    largest = sorted(modules, key=lambda row: -row["frobenius_norm"])[:_MOST_ROWS]
    about = (
        f"ΔW = scaling · B · A of {figures.count(totals.get('modules'))} modules with "
        f"{figures.count(totals.get('parameters'))} parameters; together ‖ΔW‖_F = "
        f"{figures.number(totals.get('frobenius_norm'))}."
    )
    parts = ["## What is in it", about]
    if subject.figure:
        parts.append(f"![Singular values of ΔW, module by module]({subject.figure})")
    more = f"The {len(largest)} with the largest update:" if len(modules) > len(largest) else ""
    return "\n\n".join(part for part in [*parts, more, _numbers(_SPECTRUM, largest)] if part)


def _fidelity(receipt: Mapping[str, Any]) -> str:
    rows = [row for row in receipt.get("modules") or [] if isinstance(row, dict)]
    if any("effective_strength" in row for row in rows):
        worst = sorted(rows, key=lambda row: (row.get("realised_cosine") is not None, row.get("realised_cosine") or 0))
        about = (
            "Weights were summed and rounded once. What of each update the stored weights hold, "
            f"the least faithful of {len(rows)} tensors first:"
        )
        return f"## Fidelity\n\n{about}\n\n{_numbers(_FIDELITY, worst[:_MOST_ROWS])}"
    lossy = [row for row in rows if row.get("relative_error")]
    whole = (receipt.get("totals") or {}).get("relative_error")
    if not lossy:
        return ""
    lossy.sort(key=lambda row: -row["relative_error"])
    about = f"The lower rank costs a relative error of {figures.number(whole)} on the whole; the largest of any module:"
    columns = [(key, title) for key, title in _ERRORS if any(row.get(key) is not None for row in lossy)]
    return f"## What the rank costs\n\n{about}\n\n{_numbers(columns, lossy[:_MOST_ROWS])}"


def _verify(subject: CardSubject, receipt: Mapping[str, Any]) -> str:
    lines = [f"lora-lab verify {subject.repository}"]
    arguments = receipt.get("arguments") or {}
    said = "Every file against the receipt"
    if receipt.get("operation") == "merge":
        given = [str(arguments.get("base", "")), *map(str, subject.adapters)]
        strengths = [f"--strength {value:g}" for value in arguments.get("strengths") or []]
        words = [f"--base {_word(given[0])}", *(f"--adapter {_word(name)}" for name in given[1:]), *strengths]
        lines.append(f"lora-lab verify {subject.repository} {' '.join(words)}")
        said += ", then every tensor against W + ΔW"
    inputs = receipt.get("inputs") or []
    if inputs and all(hub_locator(entry.get("locator", "")) is not None for entry in inputs):
        lines.append(f"lora-lab replay {RECEIPT} -o again")
        said += "; and all of it again, byte for byte"
    return f"## Check it\n\n{said}:\n\n```bash\n" + "\n".join(lines) + "\n```"


def _word(text: str) -> str:
    import shlex

    return shlex.quote(safe_text(text).replace("`", "'"))


# Tables


def _numbers(columns: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [[_cell(row.get(key)) for key, _ in columns] for row in rows]
    return _table([title for _, title in columns], shown, numbers=True)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return code(value)
    if isinstance(value, float):
        return figures.number(value)
    return figures.NOT_THERE if value is None else plain(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    rule = ["---", *("---:" if numbers else "---" for _ in heads[1:])]
    lines = [heads, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
