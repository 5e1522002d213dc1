"""What can be asked: whose token it is, which repositories there are, what is in them, and the files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode

from hubserver.cards import card_data, tags_of
from hubserver.store import Commit, Repository, Stored
from hubserver.wire import Reply, Request, json_reply, refuse

if TYPE_CHECKING:
    from hubserver.server import HubServer


def who_am_i(hub: HubServer, request: Request) -> Reply:
    """``GET /api/whoami-v2``."""
    account = hub.store.account(request.token)
    if account is None:
        return refuse(401, "Invalid username or password.")
    organizations = [{"type": "org", "name": name, "roleInOrg": "write"} for name in account.organizations]
    token = {"displayName": "test", "role": account.role}
    return json_reply(
        {
            "type": "user",
            "id": account.name,
            "name": account.name,
            "fullname": account.name.title(),
            "orgs": organizations,
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def listing(hub: HubServer, request: Request) -> Reply:
    """``GET /api/models``: search, filters, order, pages."""
    wanted = {value for key, value in request.query if key == "filter" for value in value.split(",")}
    words = request.one("search").lower()
    author = request.one("author")
    found = []
    for repository in list(hub.store.repositories.values()):
        if not hub.may_read(repository, request.token):
            continue
        described = describe(hub, repository, repository.resolve("main"), blobs=False)
        if words not in repository.id.lower() or not wanted <= set(described["tags"]):
            continue
        if not author or repository.id.partition("/")[0] == author:
            found.append(described)
    order = {"last_modified": "lastModified", "created_at": "createdAt"}.get(request.one("sort"), request.one("sort"))
    if order in ("downloads", "likes", "lastModified", "createdAt"):
        found.sort(key=lambda item: item[order], reverse=True)
    return paged(hub, request, found, int(request.one("limit") or hub.page_size))


def describe(hub: HubServer, repository: Repository, commit: Commit, *, blobs: bool) -> dict[str, Any]:
    """What ``model_info`` says."""
    card = card_data(commit)
    siblings: list[dict[str, Any]] = []
    for path, stored in commit.files.items():
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs and hub.lists_sizes:
            sibling |= {"size": stored.size, "blobId": stored.oid}
            if stored.sha256:
                sibling["lfs"] = {"sha256": stored.sha256, "size": stored.size, "pointerSize": len(stored.pointer)}
        siblings.append(sibling)
    return {
        "_id": repository.id,
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.id.partition("/")[0],
        "sha": commit.oid,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "tags": tags_of(commit, card),
        "downloads": repository.downloads,
        "likes": repository.likes,
        "siblings": siblings,
        "cardData": card,
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "createdAt": repository.created,
        "lastModified": commit.date,
    }


def model_info(hub: HubServer, request: Request, repository: Repository, commit: Commit) -> Reply:
    """``GET /api/models/ID[/revision/REV]``."""
    return json_reply(describe(hub, repository, commit, blobs=request.one("blobs").lower() == "true"))


def tree(hub: HubServer, request: Request, repository: Repository, commit: Commit, folder: str) -> Reply:
    """``GET /api/models/ID/tree/REV[/PATH]``."""
    prefix = f"{folder}/" if folder else ""
    recursive = request.one("recursive").lower() in ("true", "1")
    expand = request.one("expand").lower() in ("true", "1")
    items: dict[str, dict[str, Any]] = {}
    for path, stored in commit.files.items():
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            name = prefix + "/".join(parts[:depth])
            items.setdefault(name, {"type": "directory", "oid": "0" * 40, "size": 0, "path": name})
        if recursive or len(parts) == 1:
            items[path] = file_item(hub, path, stored)
    if folder and not items:
        return refuse(404, f"{folder} does not exist on this revision", "EntryNotFound", X_Repo_Commit=commit.oid)
    found = [_dated(item, commit, expand) for item in items.values()]
    return paged(hub, request, found, min(hub.page_size, 50) if expand else hub.page_size)


def paths_info(hub: HubServer, request: Request, repository: Repository, commit: Commit) -> Reply:
    """``POST /api/models/ID/paths-info/REV``."""
    form = parse_qsl(request.body().decode())
    expand = any(key == "expand" and value.lower() == "true" for key, value in form)
    found = []
    for path in (value for key, value in form if key == "paths"):
        if path in commit.files:
            found.append(_dated(file_item(hub, path, commit.files[path]), commit, expand))
        elif any(name.startswith(f"{path}/") for name in commit.files):
            found.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": path})
    return json_reply(found)


def file_item(hub: HubServer, path: str, stored: Stored) -> dict[str, Any]:
    """One file of a tree."""
    item: dict[str, Any] = {"type": "file", "oid": stored.oid, "size": stored.size, "path": path}
    if stored.sha256:
        item["lfs"] = {"oid": stored.sha256, "size": stored.size, "pointerSize": len(stored.pointer)}
        if xet := hub.xet.hash_of(stored.sha256):
            item["xetHash"] = xet
    return item


def _dated(item: dict[str, Any], commit: Commit, expand: bool) -> dict[str, Any]:
    if expand:
        item["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": commit.date}
    return item


def refs(hub: HubServer, request: Request, repository: Repository) -> Reply:
    """``GET /api/models/ID/refs``."""
    branches, tags, pulls = [], [], []
    for name, commit in repository.refs.items():
        if name.startswith("refs/pr/"):
            pulls.append({"name": name, "ref": name, "targetCommit": commit})
        elif name in repository.tags:
            tags.append({"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit})
        else:
            branches.append({"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit})
    document = {"branches": branches, "converts": [], "tags": tags}
    if request.one("include_prs"):
        document["pullRequests"] = pulls
    return json_reply(document)


def commits(hub: HubServer, request: Request, repository: Repository, commit: Commit) -> Reply:
    """``GET /api/models/ID/commits/REV``, newest first."""
    found = [
        {"id": one.oid, "title": one.title, "message": one.message, "date": one.date, "authors": [{"user": one.author}]}
        for one in repository.history(commit)
    ]
    return paged(hub, request, found, hub.page_size)


def resolve(hub: HubServer, request: Request, repository: Repository, commit: Commit, path: str) -> Reply:
    """``HEAD|GET /ID/resolve/REV/PATH``: large files lie elsewhere, small ones behind another route."""
    stored = commit.files.get(path)
    if stored is None:
        return refuse(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{stored.etag}"', "Accept-Ranges": "bytes"}
    if stored.sha256 is None:
        place = f"/api/resolve-cache/models/{repository.id}/{commit.oid}/{quote(path, safe='')}"
        return Reply(307, b"", headers | {"Location": place})
    repository.downloads += request.method == "GET"
    headers |= {"X-Linked-Etag": f'"{stored.sha256}"', "X-Linked-Size": str(stored.size)}
    if xet := hub.xet.hash_of(stored.sha256):
        route = f"{hub.url}/api/models/{repository.id}/xet-read-token/{commit.oid}"
        headers |= {"X-Xet-Hash": xet, "Link": f'<{route}>; rel="xet-auth"'}
    lives = -1 if request.fault.expire else hub.link_seconds
    return Reply(302, b"", headers | {"Location": hub.storage.link(stored.sha256, path, lives)})


def small_file(hub: HubServer, request: Request, repository: Repository, commit: Commit, path: str) -> Reply:
    """``HEAD|GET /api/resolve-cache/models/ID/SHA/PATH``."""
    stored = commit.files.get(path)
    if stored is None or stored.data is None:
        return refuse(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{stored.etag}"', "Accept-Ranges": "bytes"}
    return Reply(200, stored.data, headers | {"Content-Type": "text/plain; charset=utf-8"})


def paged(hub: HubServer, request: Request, items: list[Any], size: int) -> Reply:
    """Answer with one page, and a link to the next."""
    start = int(request.one("cursor") or 0)
    reply = json_reply(items[start : start + size])
    if start + size < len(items):
        kept = [(key, value) for key, value in request.query if key != "cursor"]
        following = urlencode([*kept, ("cursor", str(start + size))])
        reply.headers["Link"] = f'<{hub.url}{request.path}?{following}>; rel="next"'
    return reply
