"""Where a push would go: who is asking, what is there, and on top of which commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lora_lab.domain.sharing import DEFAULT_BRANCH, Account, CardFacts, RemoteFile, Target
from lora_lab.errors import HubError, LoraLabError, NotOnHubError, quoted
from lora_lab.sources.hub_access import quiet_client
from lora_lab.sources.hub_refusals import persistently, refusal_of, status_of
from lora_lab.sources.locators import hub_locator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

    from lora_lab.sources.hub_access import HubAccess

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_MOST_CARD_BYTES: Final = 1 << 20
_LICENCE: Final = ("license", "license_name", "license_link")
T = TypeVar("T")


def named_target(text: str, revision: str | None, endpoint: str) -> Target:
    """Read what a person calls the repository, without asking anyone.

    Parameters
    ----------
    endpoint : of the Hub
    text : ``org/name``, ``name`` alone for one's own, ``hf://org/name@branch``, or a web link

    Raises
    ------
    LoraLabError
        no name of a repository, a sub-folder, a commit instead of a branch, or two branches.
    """
    found = hub_locator(text)
    if found is None and not _NAME.fullmatch(text):
        raise LoraLabError(
            f"{quoted(text)} is no name of a repository, expected org/name.", hint="For example me/adapter"
        )
    if found is not None and found.subfolder:
        raise LoraLabError(f"{quoted(text)} names a sub-folder, and a push goes to the top of a repository.")
    named = found.revision if found is not None else None
    if named and revision and named != revision:
        raise LoraLabError(f"{quoted(text)} names a branch, and --revision another: {quoted(revision)}.")
    branch = named or revision or DEFAULT_BRANCH
    if _COMMIT.fullmatch(branch):
        raise LoraLabError(f"{quoted(branch)} is a commit, and a push needs a branch.", hint="Give the branch's name.")
    return Target(found.repository if found is not None else text, endpoint, branch)


def look(named: Target, access: HubAccess, *, create_pr: bool, is_cancelled: Callable[[], bool]) -> Target:
    """Ask the Hub about the account and the repository.

    Parameters
    ----------
    named : what :func:`named_target` read
    create_pr : whether the push only proposes
    is_cancelled : asked while the Hub is waited for

    Raises
    ------
    HubError
        no token, one that is not accepted or may not write, a repository of others, one that moved, no network.
    """
    asking = _Asking(access, is_cancelled)
    account = _account(asking, named.repository)
    repository = named.repository if "/" in named.repository else f"{account.name}/{named.repository}"
    owner = repository.partition("/")[0]
    info = asking.info(repository, None)
    if info is not None and info.id and info.id != repository:
        raise HubError(f"{quoted(repository)} was renamed to {quoted(info.id)}.", hint=f"Push to {info.id} instead.")
    if owner not in (account.name, *account.organisations) and not create_pr:
        raise _not_yours(repository, owner, account, is_there=info is not None)
    if info is None:
        if create_pr:
            raise NotOnHubError(
                f"{quoted(repository)} is not there, or is private, so that no pull request can be opened on it.",
                hint="Check the name, or leave --create-pr out to make a repository of your own.",
            )
        return Target(repository, named.endpoint, named.revision, account, exists=False)
    at = info if named.revision == DEFAULT_BRANCH else asking.info(repository, named.revision)
    head = at or info
    return Target(
        repository,
        named.endpoint,
        named.revision,
        account,
        exists=True,
        is_private=bool(info.private),
        is_new_branch=at is None,
        parent=head.sha,
        files=remote_files(head),
        card=_card(asking, repository, head),
    )


def card_facts(name: str, access: HubAccess, *, is_cancelled: Callable[[], bool]) -> CardFacts | None:
    """What the page of another model says; None where the Hub shows none of that name."""
    info = _Asking(access, is_cancelled).info(name, None)
    if info is None:
        return None
    data: Any = info.card_data if info.card_data is not None else {}
    licence = {key: value for key in _LICENCE if key in data and isinstance(value := data[key], str) and value}
    return CardFacts(info.id or name, info.sha, licence)


def remote_files(info: ModelInfo) -> dict[str, RemoteFile]:
    """The files of a repository, with their hashes."""
    return {
        one.rfilename: RemoteFile(one.size, one.lfs.sha256 if one.lfs is not None else None, one.blob_id)
        for one in info.siblings or ()
    }


class _Asking:
    """Reads, asked again where the Hub fails for a moment."""

    def __init__(self, access: HubAccess, is_cancelled: Callable[[], bool]) -> None:
        self.access = access
        self.api: HfApi = access.api()
        self._is_cancelled = is_cancelled

    def of(self, call: Callable[[], T], repository: str, doing: str) -> T:
        """Call, and put what goes wrong into a sentence."""
        try:
            with quiet_client():
                return persistently(call, is_cancelled=self._is_cancelled)
        except Exception as error:
            raise refusal_of(error, repository, self.access, doing=doing) from None

    def info(self, repository: str, revision: str | None) -> ModelInfo | None:
        """What the Hub says of a repository; None where it shows none, or not that branch of it."""
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

        def look() -> ModelInfo | None:
            try:
                return self.api.model_info(repository, revision=revision, files_metadata=True)
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None
            except HfHubHTTPError as error:
                if status_of(error) == 404:  # without the code that says of what: a mirror, or a name of one word
                    return None
                raise

        return self.of(look, repository, "be looked at")


def _account(asking: _Asking, repository: str) -> Account:
    withheld = asking.access.token_hint()
    if withheld:
        raise HubError(f"Nothing can be pushed to {quoted(repository)} without a token.", hint=withheld)
    if asking.access.known_token() is None:
        raise HubError(
            f"There is no token to push to {quoted(repository)} with.",
            hint="Log in with one that may write: hf auth login; or set HF_TOKEN.",
        )
    who = asking.of(asking.api.whoami, repository, "be pushed to")
    token = (who.get("auth") or {}).get("accessToken") or {}
    role = str(token.get("role") or "write")
    if role == "fineGrained" and not _may_write(token.get("fineGrained") or {}):
        role = "read"
    organisations = tuple(str(one["name"]) for one in who.get("orgs") or [] if one.get("name"))
    account = Account(str(who.get("name") or ""), role, organisations)
    if not account.can_write:
        raise HubError(
            f"The token of {quoted(account.name)} may only read, and a push writes.",
            hint="Make one that may write at huggingface.co/settings/tokens, then: hf auth login",
        )
    return account


def _may_write(scopes: Mapping[str, Any]) -> bool:
    """Whether a fine-grained token may write to any repository."""
    granted = [permission for scope in scopes.get("scoped") or [] for permission in scope.get("permissions") or []]
    return any(str(permission).startswith(("repo.write", "repo.content.write")) for permission in granted)


def _card(asking: _Asking, repository: str, head: ModelInfo) -> str | None:
    """README.md as it is there, when it is of a size that a page has."""
    listed = next((one for one in head.siblings or [] if one.rfilename == "README.md"), None)
    if listed is None or (listed.size or 0) > _MOST_CARD_BYTES:
        return None
    download = lambda: asking.api.hf_hub_download(repository, "README.md", revision=head.sha)  # noqa: E731
    path = asking.of(download, repository, "be read")
    return Path(path).read_bytes()[:_MOST_CARD_BYTES].decode(errors="replace")


def _not_yours(repository: str, owner: str, account: Account, *, is_there: bool) -> HubError:
    belongs = f"{quoted(repository)} belongs to {quoted(owner)}" if is_there else f"{quoted(owner)} is another account"
    step = "Offer the change as a pull request: --create-pr" if is_there else f"Push to {account.name}/NAME instead."
    return HubError(f"{belongs}, and the token is of {quoted(account.name)}.", hint=step)
