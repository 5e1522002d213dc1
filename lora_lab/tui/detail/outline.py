"""The list of modules as it is shown: grouped, ordered, filtered, folded. No widget, no terminal."""

from __future__ import annotations

import math
from collections import Counter
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lora_lab.domain.modules import layer_of, natural_key, projection_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Grouping(StrEnum):
    """What makes modules one group."""

    LAYER = "layer"
    PROJECTION = "projection"

    @property
    def other(self) -> Grouping:
        """The other one."""
        return Grouping.PROJECTION if self is Grouping.LAYER else Grouping.LAYER


class Order(StrEnum):
    """The measure that modules are sorted by, largest first; natural is by name."""

    NATURAL = "natural"
    NORM = "frobenius_norm"
    EFFECTIVE_RANK = "effective_rank"

    @property
    def next(self) -> Order:
        """The one after it, round and round."""
        orders = list(Order)
        return orders[(orders.index(self) + 1) % len(orders)]

    @property
    def measure(self) -> str:
        """Column that is shown beside the names."""
        return str(Order.NORM if self is Order.NATURAL else self)


TITLES: Final = {
    Order.NATURAL: "natural order",
    Order.NORM: "by ‖ΔW‖_F",
    Order.EFFECTIVE_RANK: "by effective rank",
}


class Line(NamedTuple):
    """One line of the list: a group, or a module (then ``module`` is set)."""

    group: str
    module: str | None
    label: str
    is_inside: bool = False  # a module under its group's line


class Group(NamedTuple):
    """Modules under one heading; a group without a heading is a single module on its own."""

    id: str
    label: str
    modules: tuple[str, ...]
    labels: tuple[str, ...]


class Outline:
    """Modules and what is known of them.

    Parameters
    ----------
    modules : in natural order
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = tuple(modules)
        self.rows: dict[str, Mapping[str, Any]] = {}
        self.grouping = Grouping.LAYER
        self.order = Order.NATURAL
        self.filter = ""
        self.opened: set[str] = set()
        self._groups: dict[Grouping, tuple[Group, ...]] = {}
        self._haystacks: dict[str, str] = {}
        self._shown: tuple[str, ...] | None = None

    # What is there.

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups in natural order."""
        if self.grouping not in self._groups:
            self._groups[self.grouping] = tuple(_grouped(self.modules, self.grouping))
        return self._groups[self.grouping]

    def group_of(self, module: str) -> str:
        """Id of the group that `module` is in."""
        return _group_id(module, self.grouping)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Place of each module in natural order."""
        return {module: place for place, module in enumerate(self.modules)}

    def value(self, module: str) -> float | None:
        """The measure of one module; None when it is not known, or undefined."""
        row = self.rows.get(module)
        return None if row is None else row.get(self.order.measure)

    def group_value(self, modules: Iterable[str]) -> float | None:
        """What stands beside a group: the norm of all its modules together, √Σ‖ΔW‖², or the largest effective rank.

        None until every module is known.
        """
        modules = tuple(modules)
        if any(module not in self.rows for module in modules):
            return None
        values = [value for value in map(self.value, modules) if value is not None]
        if not values:
            return None
        return math.hypot(*values) if self.order.measure == Order.NORM else max(values)

    def is_known(self, modules: Iterable[str]) -> bool:
        """Whether the rows of all of them have arrived."""
        return all(module in self.rows for module in modules)

    # What is shown.

    def _matching(self, group: Group) -> list[tuple[str, str]]:
        """Modules and labels that the filter lets through: every word is in the path; ``-word`` must not be."""
        pairs = list(zip(group.modules, group.labels, strict=True))
        words = self.filter.casefold().split()
        if not words:
            return pairs
        wanted = [_needle(word) for word in words if not word.startswith("-")]
        unwanted = [_needle(word[1:]) for word in words if word.startswith("-") and len(word) > 1]
        return [
            pair
            for pair in pairs
            if all(word in self._haystack(pair[0]) for word in wanted)
            and not any(word in self._haystack(pair[0]) for word in unwanted)
        ]

    def _haystack(self, module: str) -> str:
        known = self._haystacks.get(module)
        if known is None:
            layer = layer_of(module)
            known = self._haystacks[module] = module.casefold() + ("" if layer is None else f" l{layer} ")
        return known

    def lines(self) -> list[Line]:
        """The lines to show; a filter opens every group that has a match."""
        shown: list[Line] = []
        for group in self._ordered_groups():
            kept = self._ordered(self._matching(group))
            if not kept:
                continue
            if not group.label:
                shown.extend(Line(group.id, module, label) for module, label in kept)
                continue
            shown.append(Line(group.id, None, group.label))
            if self.filter or group.id in self.opened:
                shown.extend(Line(group.id, module, label, is_inside=True) for module, label in kept)
        return shown

    def shown_modules(self) -> list[str]:
        """Modules that the filter lets through, in the order of the screen, folded or not."""
        found: list[str] = []
        for group in self._ordered_groups():
            found.extend(module for module, _ in self._ordered(self._matching(group)))
        return found

    def _ordered_groups(self) -> Sequence[Group]:
        if self.order is Order.NATURAL:
            return self.groups
        return sorted(self.groups, key=lambda group: _descending(self._known_value(group.modules)))

    def _known_value(self, modules: Iterable[str]) -> float | None:
        values = [value for value in map(self.value, modules) if value is not None]
        if not values:
            return None
        return math.hypot(*values) if self.order.measure == Order.NORM else max(values)

    def _ordered(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        if self.order is Order.NATURAL:
            return pairs
        return sorted(pairs, key=lambda pair: _descending(self.value(pair[0])))


def _needle(word: str) -> str:
    """What to look for: ``l1`` is a layer, and must not be found in ``l10``."""
    return f" {word} " if word.startswith("l") and word[1:].isdigit() else word


def _descending(value: float | None) -> tuple[bool, float]:
    """Sort key: largest first, undefined last."""
    return (value is None, -(value or 0.0))


def _group_id(module: str, grouping: Grouping) -> str:
    """The module path up to its layer's number, or its projection; a module without a layer stands alone."""
    if grouping is Grouping.PROJECTION:
        return projection_of(module)
    layer = layer_of(module)
    return "" if layer is None else _layer_path(module)


def _layer_path(module: str) -> str:
    parts = module.split(".")
    number = next(place for place, part in enumerate(parts) if part.isascii() and part.isdigit())
    return ".".join(parts[: number + 1])


def _grouped(modules: Sequence[str], grouping: Grouping) -> list[Group]:
    members: dict[str, list[str]] = {}
    for module in modules:
        group = _group_id(module, grouping)
        members.setdefault(group or f"\0{module}", []).append(module)
    if grouping is Grouping.PROJECTION:
        order = {group: natural_key(group) for group in members}
        members = {group: members[group] for group in sorted(members, key=order.__getitem__)}
        return [
            Group(group, group, tuple(names), tuple(_distinct(names, _layer_label))) for group, names in members.items()
        ]
    stems = {group.rpartition(".")[0] for group in members if not group.startswith("\0")}
    groups = []
    for group, names in members.items():
        if group.startswith("\0"):
            groups.append(Group(group, "", tuple(names), (projection_of(names[0]),)))
            continue
        stem, _, number = group.rpartition(".")
        label = f"L{number}" if len(stems) == 1 else f"{stem.rpartition('.')[2] if _tells(stems) else stem} {number}"
        inside = [name[len(group) + 1 :] or name for name in names]
        labels = _distinct(inside, projection_of)
        groups.append(Group(group, label.strip(), tuple(names), tuple(labels)))
    return groups


def _tells(stems: set[str]) -> bool:
    """Whether the last part of each stem is enough to tell the stems apart."""
    return len({stem.rpartition(".")[2] for stem in stems}) == len(stems)


def _layer_label(module: str) -> str:
    layer = layer_of(module)
    return module if layer is None else f"L{layer}"


def short_labels(modules: Sequence[str]) -> list[str]:
    """Names of modules for a narrow column: layer and projection, or the path where that is not one of a kind.

    Examples
    --------
    >>> short_labels(["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head"])
    ['L0 q_proj', 'L1 q_proj', 'lm_head']
    """
    return _distinct(
        modules, lambda name: f"{_layer_label(name)} {projection_of(name)}" if layer_of(name) is not None else name
    )


def _distinct(names: Sequence[str], short: Any) -> list[str]:
    """Short names where they are one of a kind, whole ones where they are not."""
    shorts = [short(name) for name in names]
    times = Counter(shorts)
    return [label if times[label] == 1 else name for label, name in zip(shorts, names, strict=True)]
