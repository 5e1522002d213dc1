"""What stands in the form of a push, as a call and as a command: both ask for the same."""

from __future__ import annotations

import shlex

import click
import pytest

from lora_lab.cli.pushing import push_command
from lora_lab.tui.hub.push_form import FIELDS, SWITCHES, PushForm

FULL = {
    "repository": "me/it",
    "revision": "next",
    "base_model": "org/base",
    "licence": "apache-2.0",
    "message": "It's  mine",
}


@pytest.mark.parametrize("switched", [frozenset(), frozenset({"public"}), frozenset({"public", "create_pr"})])
def test_the_command_asks_for_what_the_call_asks_for(switched: frozenset[str]) -> None:
    form = PushForm("my folder", FULL, switched)
    words = shlex.split(form.command())
    assert words[:2] == ["lora-lab", "push"]
    parsed = push_command.make_context("push", words[2:]).params
    called = form.arguments()
    assert {name: parsed[name] for name in called} == called
    for name in {one.id for one in SWITCHES} - switched:
        assert parsed[name] is False


def test_every_field_and_switch_is_an_option_of_the_command() -> None:
    flags = {flag for one in push_command.params if isinstance(one, click.Option) for flag in one.opts}
    assert {one.flag for one in (*FIELDS, *SWITCHES) if one.flag} <= flags


def test_a_host_that_may_see_the_token_stands_in_the_command() -> None:
    form = PushForm("x", {"repository": "a"}, session={"send_token_to": ["hub.example.org"]})
    assert form.command().endswith("--send-token-to hub.example.org")


def test_only_the_repository_is_needed() -> None:
    assert PushForm("x", {}).missing() is not None
    assert PushForm("x", {"repository": "  "}).missing() is not None
    assert PushForm("x", {"repository": "a"}).missing() is None
