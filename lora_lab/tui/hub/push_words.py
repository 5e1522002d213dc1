"""What is said of a push before it is made: who, where, and which files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from textual.content import Content

from lora_lab.safetext import safe_text
from lora_lab.tui import text
from lora_lab.tui.compare.words import finding_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_lab.domain.report import Report

_DIM: Final = "$foreground 65%"
_SIGNS: Final = {"new": "+", "changed": "~", "same": "=", "unknown": "·"}
_TONES: Final = {"new": "$text-success", "changed": "$text-warning", "same": _DIM, "unknown": _DIM}
_ORIGINS: Final = {"folder": "", "rewritten": "without this machine's paths", "made": "written by this push"}
_SAID: Final = {"new": "new", "changed": "changed", "same": "there already", "unknown": ""}


def values_of(plan: Report) -> Mapping[str, Any]:
    """The scalars of a push's report."""
    return plan.scalars[0].values


def plan_lines(plan: Report) -> Content:
    """The whole plan, a few lines above its files."""
    values = values_of(plan)
    lines = [_labelled("who    ", _who(values)), _labelled("where  ", _where(values))]
    size = text.size(values["bytes_to_send"])
    lines.append(_labelled("what   ", f"{text.plural(values['files_to_send'], 'file')}, {size}, in one commit"))
    lines.append(_labelled("message", safe_text(values["message"])))
    lines += finding_lines(plan.findings)
    return Content("\n").join([*lines, *_files(plan)])


def _labelled(label: str, said: str) -> Content:
    return Content.assemble(Content.styled(f"{label}  ", _DIM), said)


def _who(values: Mapping[str, Any]) -> str:
    if values["account"] is None:
        return "not asked"
    role = {"fineGrained": "a fine-grained token", "write": "a token that may write"}.get(values["role"], "a token")
    return safe_text(f"{values['account']}, with {role}")


def _where(values: Mapping[str, Any]) -> str:
    what = {None: "not asked whether it is there", True: "there already", False: "made new"}[values["exists"]]
    branch = f"branch {values['revision']}" + (", made new" if values["new_branch"] else "")
    proposed = ", as a pull request" if values["create_pr"] else ""
    host = str(values["endpoint"]).partition("://")[2]
    return safe_text(f"{values['visibility']} {values['repository']} on {host}: {what}, {branch}{proposed}")


def _files(plan: Report) -> Iterator[Content]:
    rows = plan.table("files").rows
    width = max(len(row["path"]) for row in rows)
    for row in rows:
        more = ", ".join(part for part in (_SAID[row["state"]], _ORIGINS[row["origin"]]) if part)
        yield Content.assemble(
            Content.styled(f"{_SIGNS[row['state']]} ", _TONES[row["state"]]),
            f"{safe_text(row['path']):<{width}}  {text.size(row['size_bytes']):>8}  ",
            Content.styled(more, _DIM),
        )
    left_out = next((table.rows for table in plan.tables if table.id == "left_out"), ())
    for row in left_out:
        yield Content.styled(f"  {safe_text(row['path'])} stays: {safe_text(row['reason'])}", _DIM)


def question_of(plan: Report) -> str:
    """The one question."""
    values = values_of(plan)
    size = text.size(values["bytes_to_send"])
    proposed = "as a pull request " if values["create_pr"] else ""
    place = f"{values['visibility']} {values['repository']}"
    return f"Push {text.plural(values['files_to_send'], 'file')}, {size}, {proposed}to the {place}?"
