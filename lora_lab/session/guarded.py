"""Plugins at work: what one raises, or returns beside its contract, is told under its name and ends nothing else.

Faults of the built-ins are passed on as they are: hiding them would help nobody.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.report import Finding, Report, Scalars, Table
from lora_lab.errors import LoraLabError, PluginError, quoted
from lora_lab.extension.changes import ChangeMethod
from lora_lab.extension.contracts import Recognition
from lora_lab.extension.registry import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lora_lab.domain.parameters import Parameter
    from lora_lab.extension.changes import Change
    from lora_lab.extension.contracts import (
        AdapterFormat,
        Combination,
        Factors,
        MergeContext,
        MergeMethod,
        ReadOptions,
    )
    from lora_lab.extension.registry import PluginRecord, Registry

_HINT = "Tell the plugin's author."


@contextmanager
def attributed(what: str, id: str, owner: PluginRecord) -> Iterator[None]:  # noqa: A002 - the field's own name
    """Turn whatever a plugin raises in the block, ``sys.exit`` too, into a PluginError that names it.

    Parameters
    ----------
    what : kind of thing that is at work: analysis, command, exporter, format
    """
    try:
        yield
    except LoraLabError:
        raise
    except (Exception, SystemExit) as error:
        if owner.origin == BUILT_IN:
            raise
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise PluginError(f"{_named(what, id, owner)} failed: {reason}.", hint=_HINT) from error


def checked_report(report: object, what: str, id: str, owner: PluginRecord) -> Report:  # noqa: A002
    """Check that what a plugin returned is a Report that JSON can hold.

    A number that is NaN or infinite becomes undefined (None), and a finding says so.

    Raises
    ------
    PluginError
        it is no Report, or a cell is no text, number, truth value, list or mapping.
    """
    if owner.origin == BUILT_IN and isinstance(report, Report):
        return report
    if not isinstance(report, Report):
        raise PluginError(
            f"{_named(what, id, owner)} returned {quoted(type(report).__name__)}, expected a Report.", hint=_HINT
        )
    undefined: Counter[str] = Counter()

    def tidied(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
        plain = {}
        for name, value in values.items():
            place = f"{group}.{name}"
            try:
                plain[name], count = _plain(value)
            except TypeError as error:
                raise PluginError(
                    f"{_named(what, id, owner)} returned a value of type {quoted(error)} in {quoted(place)}, "
                    "expected texts, numbers, lists and mappings of Python's own.",
                    hint=_HINT,
                ) from None
            undefined.update({place: count} if count else {})
        return plain

    tables = tuple(
        Table(table.id, table.title, table.columns, tuple(tidied(table.id, row) for row in table.rows), table.key)
        for table in report.tables
    )
    scalars = tuple(
        Scalars(group.id, group.title, group.columns, tidied(group.id or "totals", group.values))
        for group in report.scalars
    )
    findings = tuple(
        Finding(
            "undefined_number",
            f"{_named(what, id, owner)} returned NaN or infinity {count} times in {quoted(place)}: undefined there.",
        )
        for place, count in undefined.items()
    )
    return replace(report, tables=tables, scalars=scalars, findings=(*report.findings, *findings))


class GuardedFormat:
    """A plugin's format, of which nothing but its own files can be harmed.

    Parameters
    ----------
    mishaps : told of looks that failed; they count as a No
    """

    def __init__(self, format: AdapterFormat, owner: PluginRecord, mishaps: list[str]) -> None:  # noqa: A002
        self._format = format
        self._owner = owner
        self._mishaps = mishaps

    @property
    def id(self) -> str:
        """As the plugin declares it."""
        return self._format.id

    @property
    def title(self) -> str:
        """As the plugin declares it."""
        return self._format.title

    def recognise(self, path: Path) -> Recognition:
        """Ask the plugin; never raise."""
        try:
            with attributed("format", self.id, self._owner):
                found: object = self._format.recognise(path)
        except LoraLabError as error:
            return self._missed(error.message)
        if not isinstance(found, Recognition):
            said = f"returned {quoted(type(found).__name__)} for a look, expected a Recognition"
            return self._missed(f"{_named('format', self.id, self._owner)} {said}.")
        return found

    def read(self, path: Path, options: ReadOptions) -> Adapter:
        """Let the plugin read, and see that it is an Adapter."""
        with attributed("format", self.id, self._owner):
            adapter: object = self._format.read(path, options)
        if not isinstance(adapter, Adapter):
            said = f"returned {quoted(type(adapter).__name__)}, expected an Adapter"
            raise PluginError(f"{_named('format', self.id, self._owner)} {said}.", hint=_HINT)
        return adapter

    def _missed(self, sentence: str) -> Recognition:
        self._mishaps.append(sentence)
        return Recognition.NO


class GuardedMethod:
    """A plugin's method, of which nothing is written that is not of the shape it has to be."""

    def __init__(self, method: MergeMethod, owner: PluginRecord) -> None:
        self._method = method
        self._owner = owner

    @property
    def id(self) -> str:
        """As the plugin declares it."""
        return self._method.id

    @property
    def title(self) -> str:
        """As the plugin declares it."""
        return self._method.title

    @property
    def summary(self) -> str:
        """As the plugin declares it."""
        return self._method.summary

    @property
    def reference(self) -> str:
        """As the plugin declares it."""
        return self._method.reference

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """As the plugin declares it."""
        return self._method.parameters

    @property
    def is_low_rank(self) -> bool:
        """As the plugin declares it."""
        return self._method.is_low_rank

    def combine(self, factors: Sequence[Factors], strengths: Sequence[float], context: MergeContext) -> Combination:
        """Let the plugin combine one module, and see that its factors are some of that module."""
        with attributed("method", self.id, self._owner):
            found = self._method.combine(factors, strengths, context)
        return self._checked(found, factors[0], context)

    def _checked(self, found: Combination, first: Factors, context: MergeContext) -> Combination:
        wrong = _fault(found, first)
        if wrong:
            raise PluginError(
                f"{_named('method', self.id, self._owner)} returned {wrong} for {quoted(context.module)}.", hint=_HINT
            )
        return found


class GuardedChangeMethod(GuardedMethod):
    """The same of a method that needs no factors."""

    def combine_changes(
        self, changes: Sequence[Factors | Change], strengths: Sequence[float], context: MergeContext
    ) -> Combination:
        """Let the plugin combine one module, and see that its factors are some of that module."""
        from lora_lab.extension.contracts import Factors

        with attributed("method", self.id, self._owner):
            found = cast("ChangeMethod", self._method).combine_changes(changes, strengths, context)
        first = changes[0]
        return self._checked(found, first if isinstance(first, Factors) else first.factors, context)


def guarded_method(method: MergeMethod, owner: PluginRecord) -> MergeMethod:
    """A plugin's method guarded; a built-in one as it is."""
    if owner.origin == BUILT_IN:
        return method
    return GuardedChangeMethod(method, owner) if isinstance(method, ChangeMethod) else GuardedMethod(method, owner)


def _fault(found: object, first: Factors) -> str:
    """What is wrong with a combination of updates of the shape of `first`; empty when nothing is."""
    from lora_lab.extension.contracts import Combination

    if not isinstance(found, Combination):
        return f"{quoted(type(found).__name__)}, expected a Combination"
    shapes = tuple(found.factors.lora_B.shape), tuple(found.factors.lora_A.shape)
    rank = found.factors.lora_A.shape[0] if found.factors.lora_A.ndim else 0
    expected = (first.lora_B.shape[0], rank), (rank, first.lora_A.shape[1])
    if shapes != expected:
        sides = f"({expected[0][0]}, r) and (r, {expected[1][1]})"
        return f"lora_B {shapes[0]} and lora_A {shapes[1]}, expected {sides}"
    numbers: tuple[tuple[str, object], ...] = (("norm", found.norm), ("error", found.error))
    for name, number in numbers:
        if not (isinstance(number, float) and 0.0 <= number < math.inf):
            return f"the {name} {quoted(number)}, expected a finite float that is not negative"
    if found.factors.is_transposed is not first.is_transposed:
        return f"is_transposed {found.factors.is_transposed}, expected {first.is_transposed} as in the inputs"
    return ""


def guarded_formats(registry: Registry, mishaps: list[str]) -> tuple[AdapterFormat, ...]:
    """All formats, those of plugins guarded; what they miss is added to `mishaps`."""
    owned = [(found, registry.plugin_of("formats", key)) for key, found in registry.formats.items()]
    return tuple(found if owner.origin == BUILT_IN else GuardedFormat(found, owner, mishaps) for found, owner in owned)


def _named(what: str, id: str, owner: PluginRecord) -> str:  # noqa: A002
    return f"The {what} {quoted(id)} of the plugin {quoted(owner.name)}"


def _plain(value: Any) -> tuple[Any, int]:
    """`value` in types that JSON has, and how many numbers in it are undefined; TypeError names another type."""
    if value is None or isinstance(value, str | bool | int):
        return value, 0
    if isinstance(value, float):
        return (float(value), 0) if math.isfinite(value) else (None, 1)
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        cells = {key: _plain(item) for key, item in value.items()}
        return {key: item for key, (item, _) in cells.items()}, sum(count for _, count in cells.values())
    raise TypeError(type(value).__name__)
