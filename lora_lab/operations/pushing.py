"""Carrying a push out, and looking at what is there afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.domain.report import Finding
from lora_lab.domain.sharing import Landed
from lora_lab.errors import HubError, LoraLabError, quoted
from lora_lab.operations.push_report import report_of, verdict_of
from lora_lab.sources.hub_upload import MADE_AND_EMPTY, Shipment, UnsettledError, arrived

if TYPE_CHECKING:
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report
    from lora_lab.operations.push import PushPlan
    from lora_lab.sources.hub_access import HubAccess
    from lora_lab.sources.hub_upload import Sender


def carry_out(plan: PushPlan, access: HubAccess, sender: Sender, observer: Observer) -> Report:
    """Send what `plan` says, in one commit, and compare what is there with it.

    Raises
    ------
    CancelledError
        the observer asked for it.
    HubError
        the Hub said no; the sentence says what is there.
    """
    target, options = plan.target, plan.options
    if not plan.files_to_send and target.parent is not None and not target.is_new_branch:
        said = "The repository has every file already as it would be sent, and nothing was committed."
        there = Landed(target.parent, target.url)
        same = {file.name: True for file in plan.files}
        return report_of(plan, landed=there, arrived=same, findings=(Finding("nothing_to_send", said),))
    shipment = Shipment(
        target, access, plan.files_to_send, plan.message, plan.description, options.is_public, options.create_pr
    )
    try:
        landed = sender.send(shipment, observer)
    except UnsettledError as error:
        return _settled(plan, access, error)
    findings: list[Finding] = []
    hashes = None
    try:
        _, hashes = arrived(target, plan.files, access, commit=landed.commit)
    except LoraLabError as error:
        said = f"Whether every file arrived as it was sent could not be established: {error.message}"
        findings.append(Finding("not_established", said))
    wrong = sorted(name for name, is_there in (hashes or {}).items() if is_there is False)
    if wrong:
        named = ", ".join(quoted(name) for name in wrong[:3])
        findings.append(Finding("arrived_wrong", f"The repository has other bytes than were sent of {named}."))
    return report_of(plan, landed=landed, arrived=hashes, findings=tuple(findings))


def _settled(plan: PushPlan, access: HubAccess, error: UnsettledError) -> Report:
    """Look whether a commit whose reply was lost is there; it is not sent again.

    Raises
    ------
    HubError
        it is not there, or that cannot be known.
    """
    target = plan.target
    where = f"look at {target.url}" + ("/discussions" if plan.options.create_pr else "/commits")
    unknown = HubError(
        f"{error.message} Whether the commit arrived could not be established.", hint=f"Before you push again, {where}"
    )
    if plan.options.create_pr:
        raise unknown from None
    try:
        commit, hashes = arrived(target, plan.files, access, commit=None)
    except LoraLabError:
        raise unknown from None
    if commit == target.parent or verdict_of(hashes) is False:
        shown = quoted(target.repository)
        made = f"Nothing was committed to {shown}." if target.exists else f"{shown} {MADE_AND_EMPTY}."
        raise HubError(f"{error.message} {made}", hint=error.hint) from None
    said = "The Hub's reply to the commit was lost; the commit is there nevertheless, and was not sent twice."
    landed = Landed(commit, f"{target.url}/commit/{commit}")
    return report_of(plan, landed=landed, arrived=hashes, findings=(Finding("reply_lost", said),))
