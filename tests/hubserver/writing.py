"""What can be changed: repositories, references, discussions, commits."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from hubserver.cards import complaints
from hubserver.store import Commit, Discussion, Repository, Stored, is_large, now
from hubserver.wire import Reply, Request, json_reply, refuse

if TYPE_CHECKING:
    from hubserver.server import HubServer


def create_repository(hub: HubServer, request: Request) -> Reply:
    """``POST /api/repos/create``."""
    wanted = request.json()
    account = hub.store.account(request.token)
    if account is None:
        return refuse(401, "Invalid username or password.")
    name = f"{wanted.get('organization') or account.name}/{wanted['name']}"
    if account.role != "write" or not account.owns(name):
        namespace = name.partition("/")[0]
        return refuse(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    with hub.store.lock:
        if name in hub.store.repositories:
            return json_reply(
                {"error": "You already created this model repo", "url": f"{hub.url}/{name}"},
                409,
                X_Error_Message="You already created this model repo",
            )
        private = wanted.get("private") or wanted.get("visibility") == "private"
        hub.store.make(name, private=bool(private))
    return json_reply({"url": f"{hub.url}/{name}", "name": name, "id": name})


def delete_repository(hub: HubServer, request: Request) -> Reply:
    """``DELETE /api/repos/delete``."""
    wanted = request.json()
    account = hub.store.account(request.token)
    name = f"{wanted.get('organization') or (account.name if account else '')}/{wanted['name']}"
    repository = hub.store.repositories.get(name)
    if repository is None or not hub.may_read(repository, request.token):
        return refuse(404, "Repository not found", "RepoNotFound")
    if not hub.may_write(repository, request.token):
        return refuse(403, "You don't have the rights to delete this repository")
    del hub.store.repositories[name]
    return json_reply({})


def settings(hub: HubServer, request: Request, repository: Repository) -> Reply:
    """``PUT /api/models/ID/settings``."""
    wanted = request.json()
    if "visibility" in wanted or "private" in wanted:
        repository.private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    if "gated" in wanted:
        repository.gated = wanted["gated"]
    return json_reply({})


def branch(hub: HubServer, request: Request, repository: Repository, name: str) -> Reply:
    """``POST|DELETE /api/models/ID/branch/NAME``."""
    if request.method == "DELETE":
        return _forget(repository, name)
    start = repository.resolve(request.json().get("startingPoint") or "main")
    return _name(repository, name, start, tag=False)


def tag(hub: HubServer, request: Request, repository: Repository, name: str) -> Reply:
    """``POST /api/models/ID/tag/REV``, ``DELETE /api/models/ID/tag/TAG``."""
    if request.method == "DELETE":
        return _forget(repository, name)
    return _name(repository, request.json()["tag"], repository.resolve(name), tag=True)


def _name(repository: Repository, name: str, commit: Commit | None, *, tag: bool) -> Reply:
    if name in repository.refs:
        return refuse(409, f"Reference {name} already exists")
    if commit is None:
        return refuse(404, "Invalid rev id", "RevisionNotFound")
    repository.refs[name] = commit.oid
    if tag:
        repository.tags.add(name)
    return json_reply({})


def _forget(repository: Repository, name: str) -> Reply:
    if repository.refs.pop(name, None) is None:
        return refuse(404, "Invalid rev id", "RevisionNotFound")
    repository.tags.discard(name)
    return json_reply({})


def validate_card(hub: HubServer, request: Request) -> Reply:
    """``POST /api/validate-yaml``."""
    errors, warnings = complaints(request.json()["content"])
    document = {"errors": [{"message": one} for one in errors], "warnings": [{"message": one} for one in warnings]}
    return json_reply(document, 400 if errors else 200)


def discuss(hub: HubServer, request: Request, repository: Repository) -> Reply:
    """``POST /api/models/ID/discussions``."""
    wanted = request.json()
    made = propose(
        hub, request, repository, wanted["title"], wanted.get("description", ""), pull=bool(wanted.get("pullRequest"))
    )
    return json_reply({"num": made.number})


def propose(
    hub: HubServer, request: Request, repository: Repository, title: str, text: str, *, pull: bool
) -> Discussion:
    """Open a discussion; a pull request starts at the head of main."""
    account = hub.store.account(request.token)
    with hub.store.lock:
        number = len(repository.discussions) + 1
        made = Discussion(number, title, text, account.name if account else "nobody", pull, now())
        repository.discussions.append(made)
        if pull:
            repository.refs[f"refs/pr/{number}"] = repository.refs["main"]
    return made


def discussion(hub: HubServer, request: Request, repository: Repository, number: int) -> Reply:
    """``GET /api/models/ID/discussions/N``."""
    if not 1 <= number <= len(repository.discussions):
        return refuse(404, "Discussion not found")
    found = repository.discussions[number - 1]
    document: dict[str, Any] = {
        "title": found.title,
        "num": number,
        "author": {"name": found.author},
        "createdAt": found.date,
        "status": "draft" if found.is_pull_request else "open",
        "repo": {"name": repository.id, "type": "model"},
        "isPullRequest": found.is_pull_request,
        "events": [],
    }
    if found.is_pull_request:
        document |= {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "diff": ""}
    return json_reply(document)


def preupload(hub: HubServer, request: Request, repository: Repository, commit: Commit) -> Reply:
    """``POST /api/models/ID/preupload/REV``: how each file should be sent, and what is there already."""
    answers = []
    for file in request.json()["files"]:
        large = is_large(file["path"], file["size"], base64.b64decode(file.get("sample") or ""))
        answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if there := commit.files.get(file["path"]):
            answer["oid"] = there.etag
        answers.append(answer)
    return json_reply({"files": answers, "commitOid": commit.oid})


def commit(hub: HubServer, request: Request, repository: Repository, ref: str) -> Reply:
    """``POST /api/models/ID/commit/REV``: one commit, or 412 when its parent is not the newest any more."""
    lines = [json.loads(line) for line in request.body().splitlines() if line.strip()]
    header = lines[0]["value"]
    account = hub.store.account(request.token)
    with hub.store.lock:
        parent = repository.resolve(ref)
        if parent is None:
            return refuse(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        if header.get("parentCommit") not in (None, parent.oid):
            return refuse(412, "A commit has happened since. Please refresh and try again.")
        changes: dict[str, Stored | None] = {}
        for line in lines[1:]:
            if problem := _change(hub, parent, changes, line["key"], line["value"]):
                return refuse(400, problem)
        title, text = header["summary"], header.get("description", "")
        document: dict[str, Any] = {"success": True, "pullRequestUrl": None}
        if request.one("create_pr"):
            number = propose(hub, request, repository, title, text, pull=True).number
            ref = f"refs/pr/{number}"
            document["pullRequestUrl"] = f"{hub.url}/{repository.id}/discussions/{number}"
        made = repository.commit(ref, changes, title, message=text, author=account.name if account else "nobody")
    document |= {"commitOid": made.oid, "commitUrl": f"{hub.url}/{repository.id}/commit/{made.oid}"}
    return json_reply(document)


def _change(hub: HubServer, parent: Commit, changes: dict[str, Stored | None], key: str, value: Any) -> str:
    """Take one line of a commit; returns what is wrong with it."""
    path = value["path"]
    if path.startswith(("/", ".git/")) or ".." in path.split("/"):
        return f"Invalid path: {path}"
    if key == "file":
        data = base64.b64decode(value["content"])
        if is_large(path, len(data), data):
            return f"{path} has to be uploaded as a large file"
        changes[path] = Stored(len(data), data)
    elif key == "lfsFile":
        size = hub.objects.size_of(value["oid"])
        if size is None:
            return f"LFS pointer pointed to a file that does not exist: {path}"
        if value.get("size", size) != size:
            return f"{path} has {size} bytes, not {value['size']}"
        changes[path] = Stored(size, None, value["oid"])
    elif key == "deletedFile":
        if path not in parent.files:
            return f"{path} does not exist"
        changes[path] = None
    elif key == "deletedFolder":
        changes |= dict.fromkeys(name for name in parent.files if name.startswith(path.rstrip("/") + "/"))
    else:
        return f"Unknown operation {key}"
    return ""
