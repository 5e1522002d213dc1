"""What is read of a token, and of what a person calls a repository."""

from __future__ import annotations

from typing import Any

import pytest

from lora_lab.sources.hub_target import _may_write, named_target

HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("scopes", "may"),
    [
        ({}, False),
        ({"scoped": [{"entity": {"name": "me"}, "permissions": ["repo.content.read"]}]}, False),
        ({"scoped": [{"permissions": ["repo.content.read", "repo.write"]}]}, True),
        ({"scoped": [{"permissions": []}, {"permissions": ["repo.content.write"]}]}, True),
        ({"scoped": [{"permissions": ["inference.serverless.write"]}], "global": ["discussion.write"]}, False),
    ],
)
def test_a_fine_grained_token_may_write_where_a_scope_says_so(scopes: dict[str, Any], may: bool) -> None:
    assert _may_write(scopes) is may


@pytest.mark.parametrize(
    ("text", "revision", "repository", "branch"),
    [
        ("me/it", None, "me/it", "main"),
        ("it", "next", "it", "next"),
        ("hf://me/it@next", None, "me/it", "next"),
        ("https://huggingface.co/me/it", "next", "me/it", "next"),
        ("me/it@next", "next", "me/it", "next"),
    ],
)
def test_the_same_place_by_every_name(text: str, revision: str | None, repository: str, branch: str) -> None:
    found = named_target(text, revision, HUB)
    assert (found.repository, found.revision) == (repository, branch)
    assert found.exists is None
