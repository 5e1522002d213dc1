"""Whether a value that a hook returned keeps the contract of its kind, member by member.

A plugin's author sees at once what is wrong and where; whoever uses the value later need not look again.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.parameters import Parameter
from lora_lab.errors import quoted
from lora_lab.extension.contracts import Need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def faults(value: object, contract: type) -> Iterator[str]:
    """Say what `value` lacks, or has of another type than `contract` asks for.

    Parameters
    ----------
    contract : a protocol, or a dataclass that `value` has to be one of

    Examples
    --------
    >>> from lora_lab.extension.contracts import Exporter
    >>> print(*faults(object(), Exporter), sep="; ")
    lacks export, id, suffix, title
    """
    if is_dataclass(contract) and not isinstance(value, contract):
        yield f"is no {contract.__name__}"
        return
    missing = []
    for name in _members(contract):
        try:
            member = getattr(value, name)
        except AttributeError:
            missing.append(name)
            continue
        except Exception as error:  # a property is the plugin's own code
            yield f"raises {type(error).__name__} when it is asked for its {name}"
            continue
        is_right, expected = _EXPECTED.get(name, (callable, "a function"))
        if not is_right(member):
            yield f"has the {name} {quoted(member)}, expected {expected}"
    if missing:
        yield f"lacks {', '.join(missing)}"


def _members(contract: type) -> list[str]:
    if is_dataclass(contract):
        return [field.name for field in fields(contract)]
    return sorted(name for name in vars(contract) if not name.startswith("_"))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.replace("-", "_").isidentifier()


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _are_parameters(value: object) -> bool:
    if not isinstance(value, tuple) or not all(isinstance(parameter, Parameter) for parameter in value):
        return False
    return len({parameter.id for parameter in value}) == len(value) and all(_is_name(entry.id) for entry in value)


def _is_range(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != 2 or not all(type(count) is int for count in value):
        return False
    fewest, most = value
    return bool(0 <= fewest <= most and most > 0)


_NAME: Final = (_is_name, "a name of letters, digits, - and _")
_TEXT: Final = (_is_text, "a text")
_SWITCH: Final = (_is_switch, "True or False")
_EXPECTED: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "id": _NAME,
    "name": _NAME,
    "title": _TEXT,
    "summary": _TEXT,
    "reference": _TEXT,
    "suffix": _TEXT,
    "takes_models": _SWITCH,
    "takes_sources": _SWITCH,
    "is_exact": _SWITCH,
    "is_low_rank": _SWITCH,
    "base": (lambda value: isinstance(value, Need), "one of Need"),
    "parameters": (_are_parameters, "a tuple of Parameter, each with an id of its own"),
    "subjects": (_is_range, "a tuple of two whole numbers, the fewest inputs and the most"),
}
