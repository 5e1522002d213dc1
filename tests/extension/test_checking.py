"""What a hook returns is checked member by member, so that a fault is found where it was made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lora_lab.analyses.spectrum import Spectrum
from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.extension import contracts
from lora_lab.extension.checking import faults
from lora_lab.extension.contracts import Analysis, CommandSpec, Need
from lora_lab.session import Session

SOUND: dict[str, Any] = {
    "id": "mine",
    "title": "Mine",
    "summary": "",
    "reference": "",
    "parameters": (Parameter("limit", "Limit", ParameterKind.NUMBER, 1.0),),
    "subjects": (1, 2),
    "takes_models": False,
    "base": Need.OPTIONAL,
    "run": print,
}


def analysis(**changed: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**SOUND, **changed})


def test_what_is_sound_has_no_fault() -> None:
    """A made one, and everything that is built in."""
    assert list(faults(analysis(), Analysis)) == []
    registry = Session(plugins=False).registry
    kinds = {"formats": contracts.AdapterFormat, "analyses": Analysis, "exporters": contracts.Exporter}
    for shelf, contract in kinds.items():
        assert getattr(registry, shelf)
        assert [fault for value in getattr(registry, shelf).values() for fault in faults(value, contract)] == []


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("id", ""),
        ("id", "two words"),
        ("id", 3),
        ("title", None),
        ("summary", b"bytes"),
        ("parameters", [SOUND["parameters"][0]]),
        ("parameters", ("limit",)),
        ("parameters", SOUND["parameters"] * 2),
        ("subjects", 1),
        ("subjects", (2, 1)),
        ("subjects", (0, 0)),
        ("subjects", (1.0, 2.0)),
        ("takes_models", 1),
        ("base", "optional"),
        ("run", "print"),
    ],
)
def test_each_member_has_its_type(member: str, value: Any) -> None:
    """The one fault names the member and what it is."""
    (fault,) = faults(analysis(**{member: value}), Analysis)
    assert f"has the {member} " in fault
    assert "expected" in fault


def test_what_is_missing_is_listed_at_once() -> None:
    """Not one after another."""
    (fault,) = faults(SimpleNamespace(id="mine"), Analysis)
    assert fault == "lacks base, parameters, reference, run, subjects, summary, takes_models, title"


def test_a_property_that_raises_is_a_fault() -> None:
    """A property is the plugin's own code."""

    class Raises(Spectrum):
        @property
        def title(self) -> str:  # type: ignore[override]
            raise RuntimeError("no title")

    assert list(faults(Raises(), Analysis)) == ["raises RuntimeError when it is asked for its title"]


def test_a_dataclass_has_to_be_one() -> None:
    """A look-alike of CommandSpec is none; a CommandSpec with wrong members is told which."""
    assert list(faults(SimpleNamespace(name="a", summary="", run=print), CommandSpec)) == ["is no CommandSpec"]
    (fault,) = faults(CommandSpec("a b", "", run=print), CommandSpec)  # type: ignore[arg-type]
    assert fault.startswith("has the name 'a b'")


def test_every_member_of_every_contract_has_a_check() -> None:
    """A member that is added is no function by accident."""
    from lora_lab.extension.checking import _EXPECTED, _members

    kinds = ("AdapterFormat", "Analysis", "MergeMethod", "SwapStrategy", "Exporter", "CommandSpec")
    functions = {"recognise", "read", "run", "combine", "prepare", "export"}
    for kind in kinds:
        assert set(_members(getattr(contracts, kind))) <= set(_EXPECTED) | functions
