"""What a push says of itself: before, what would be sent where; after, what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.report import Column, ColumnKind, Finding, InputRecord, Report, Scalars, Table
from lora_lab.domain.sharing import DEFAULT_BRANCH, Origin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.domain.sharing import Landed
    from lora_lab.operations.push import PushPlan

_PLACE: Final = (
    Column("operation", "Operation", ColumnKind.TEXT),
    Column("repository", "Repository", ColumnKind.TEXT),
    Column("endpoint", "Hub", ColumnKind.TEXT),
    Column("account", "Account", ColumnKind.TEXT),
    Column("role", "Token", ColumnKind.TEXT),
    Column("exists", "Exists", ColumnKind.VALUE),
    Column("visibility", "Visibility", ColumnKind.TEXT),
    Column("revision", "Branch", ColumnKind.TEXT),
    Column("new_branch", "New branch", ColumnKind.VALUE),
    Column("create_pr", "Pull request", ColumnKind.VALUE),
    Column("parent", "On top of", ColumnKind.TEXT),
    Column("message", "Message", ColumnKind.TEXT),
    Column("description", "Description", ColumnKind.TEXT, is_wide=True),
    Column("base_models", "Base model", ColumnKind.LIST),
    Column("files_to_send", "Files to send", ColumnKind.INTEGER),
    Column("bytes_to_send", "Bytes to send", ColumnKind.BYTES, unit="bytes"),
    Column("plan", "Plan", ColumnKind.TEXT, is_wide=True),
    Column("card", "Card", ColumnKind.TEXT, is_wide=True),
)
_OUTCOME: Final = (
    Column("commit", "Commit", ColumnKind.TEXT),
    Column("url", "Link", ColumnKind.TEXT),
    Column("pull_request", "Pull request at", ColumnKind.TEXT),
)
_FILES: Final = (
    Column("path", "File", ColumnKind.TEXT),
    Column("size_bytes", "Size", ColumnKind.BYTES, unit="bytes"),
    Column("state", "There", ColumnKind.TEXT),
    Column("origin", "From", ColumnKind.TEXT),
    Column("sha256", "sha256", ColumnKind.TEXT, is_wide=True),
)
_ARRIVED: Final = Column("arrived", "As sent", ColumnKind.VALUE)
_LEFT_OUT: Final = (Column("path", "File", ColumnKind.TEXT), Column("reason", "Why it stays", ColumnKind.TEXT))


def report_of(
    plan: PushPlan,
    *,
    landed: Landed | None = None,
    arrived: Mapping[str, bool | None] | None = None,
    findings: tuple[Finding, ...] = (),
) -> Report:
    """Everything about one push.

    Parameters
    ----------
    landed : what became of it; None before
    arrived : by name, whether a file is there as it was sent; None where that is not known
    """
    target = plan.target
    rows = [
        {
            "path": file.name,
            "size_bytes": file.size_bytes,
            "state": str(target.state_of(file)),
            "origin": str(file.origin),
            "sha256": file.sha256,
            **({"arrived": (arrived or {}).get(file.name)} if landed is not None else {}),
        }
        for file in plan.files
    ]
    tables = [Table("files", "Files", _FILES if landed is None else (*_FILES, _ARRIVED), tuple(rows), key="path")]
    if plan.left_out:
        kept = tuple({"path": one.name, "reason": one.reason} for one in plan.left_out)
        tables.append(Table("left_out", "Not sent", _LEFT_OUT, kept, key="path"))
    outcome = (
        {} if landed is None else {"commit": landed.commit, "url": landed.url, "pull_request": landed.pull_request}
    )
    columns = _PLACE if landed is None else (*_PLACE, *_OUTCOME)
    values = {**_place(plan), **outcome}
    said = tuple(column for column in columns if column.is_wide or values.get(column.id) not in (None, [], False, ""))
    sent = {file.name: file.sha256 for file in plan.files if file.origin is not Origin.MADE}
    return Report(
        command="push",
        title=f"Push to {target.repository}",
        tables=tuple(tables),
        scalars=(Scalars("", "Push", said, values),),
        findings=(*plan.findings, *findings),
        inputs=(InputRecord(plan.source, plan.folder, sent),),
        verdict=None if landed is None else verdict_of(arrived),
    )


def verdict_of(arrived: Mapping[str, bool | None] | None) -> bool | None:
    """Whether everything is there as it was sent; None where that could not be established."""
    if arrived is None or (None in arrived.values() and False not in arrived.values()):
        return None
    return all(arrived.values())


def _place(plan: PushPlan) -> dict[str, Any]:
    target, options = plan.target, plan.options
    is_private = target.is_private if target.exists else not options.is_public
    return {
        "operation": "push",
        "repository": target.repository,
        "endpoint": target.endpoint,
        "account": target.account.name if target.account else None,
        "role": target.account.role if target.account else None,
        "exists": target.exists,
        "visibility": "private" if is_private else "public",
        "revision": target.revision or DEFAULT_BRANCH,
        "new_branch": target.is_new_branch,
        "create_pr": options.create_pr,
        "parent": target.parent,
        "message": plan.message,
        "description": plan.description,
        "base_models": list(plan.base_models),
        "files_to_send": len(plan.files_to_send),
        "bytes_to_send": plan.bytes_to_send,
        "plan": plan.id,
        "card": plan.card,
    }
