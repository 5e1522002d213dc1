"""What analyses of several adapters share: which modules they have in common, and their factors side by side."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from lora_lab.analyses.scope import outside_findings
from lora_lab.domain.adapter import DeltaKind
from lora_lab.domain.modules import natural_key, select_modules
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.domain.report import Finding
from lora_lab.errors import AdapterError, CompatibilityError, NumericalError, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lora_lab.domain.adapter import Adapter, Delta
    from lora_lab.extension.contracts import AnalysisContext, Factors, Reader
    from lora_lab.linalg.spectra import Pair

T = TypeVar("T")
_MOST_NAMED: Final = 3


class Place(NamedTuple):
    """One module, and what each adapter has there, in the adapters' order.

    deltas : None of an adapter that does not have the module
    """

    module: str
    deltas: tuple[Delta | None, ...]

    @property
    def present(self) -> tuple[Delta, ...]:
        """The deltas that are there."""
        return tuple(delta for delta in self.deltas if delta is not None)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The different shapes of lora_B @ lora_A, in the order met."""
        return tuple(dict.fromkeys(map(matrix_shape, self.present)))


def chosen_modules(adapters: Sequence[Adapter], globs: Sequence[str]) -> tuple[str, ...]:
    """Modules of any of `adapters` that one of `globs` matches, all without globs, in natural order.

    Raises
    ------
    AdapterError
        there are globs, and none matches a module of any adapter.
    """
    everything = sorted({module for adapter in adapters for module in adapter.modules}, key=natural_key)
    chosen = select_modules(everything, globs)
    if globs and not chosen:
        first = everything[0] if everything else "none"
        raise AdapterError(
            f"No module of {listed([adapter.name for adapter in adapters])} matches "
            f"{', '.join(quoted(glob) for glob in globs)}, expected a name such as {quoted(first)}.",
            hint="lora-lab inspect lists the modules.",
        )
    return tuple(chosen)


def common_places(adapters: Sequence[Adapter], modules: Sequence[str]) -> list[Place]:
    """What `adapters` have at each of `modules` that at least two of them have.

    Raises
    ------
    CompatibilityError
        there is no such module, or none that has one shape in all that have it.
    """
    everywhere = places(adapters, modules)
    common = [place for place in everywhere if len(place.present) >= 2]
    if common and not any(len(place.shapes) == 1 for place in common):
        raise CompatibilityError(
            f"None of the {len(common)} modules that {listed([adapter.name for adapter in adapters])} have in common "
            f"is of one shape, expected that of one base: {quoted(common[0].module)} is {_shapes(common[0])}.",
            hint="They belong to models of different sizes: lora-lab diff lists what each of them has.",
        )
    if common:
        return common
    first = [
        next((place.module for place in everywhere if place.deltas[index] is not None), None)
        for index in range(len(adapters))
    ]
    names = [
        f"{quoted(module) if module else 'none'} in {quoted(adapter.name)}"
        for module, adapter in zip(first, adapters, strict=True)
    ]
    raise CompatibilityError(
        f"No module is in more than one of the adapters, expected common ones, got {in_a_row(names)}.",
        hint="They belong to different models or name their modules differently: lora-lab inspect lists the modules.",
    )


def matrix_shape(delta: Delta) -> tuple[int, int]:
    """(out, in) of lora_B @ lora_A, whatever way round the base stores the weight.

    A convolution's kernel is flattened to (out, in·k…).
    """
    if delta.kind is DeltaKind.EMBEDDING or delta.fan_in_fan_out:
        return delta.shape[1], delta.shape[0]
    return delta.shape[0], prod(delta.shape[1:])


def places(adapters: Sequence[Adapter], modules: Sequence[str]) -> list[Place]:
    """What each of `adapters` has at each of `modules`."""
    return [Place(module, tuple(adapter.by_module.get(module) for adapter in adapters)) for module in modules]


def in_step(
    wanted: Sequence[Place], context: AnalysisContext, work: Callable[[Place, Sequence[Pair]], T]
) -> Iterator[T | NumericalError]:
    """Read the factors of every place from all adapters at once, and yield what `work` makes of them, in order.

    Places are worked on side by side while the next ones are being read. NaN, infinity, or a product out of range is
    the result of its place, and ends nothing.

    Parameters
    ----------
    work : given the place and the pairs of those who have the module, in order; called on a worker thread

    Raises
    ------
    CancelledError
        the observer no longer wants the result.
    """
    from lora_lab.linalg.side_by_side import side_by_side

    return side_by_side(_tasks(wanted, context, work))


def _tasks(
    wanted: Sequence[Place], context: AnalysisContext, work: Callable[[Place, Sequence[Pair]], T]
) -> Iterator[tuple[int, Callable[[], T | NumericalError]]]:
    from lora_lab.linalg.threads import one_thread

    adapters = len(wanted[0].deltas) if wanted else 0
    streams = [
        _factors_or_faults([place.deltas[index] for place in wanted], context.reader) for index in range(adapters)
    ]
    for place in wanted:
        stop_if_cancelled(context.observer)
        with one_thread():  # the processors belong to the workers
            found = [next(stream) for stream, delta in zip(streams, place.deltas, strict=True) if delta is not None]
        size = sum(0 if isinstance(one, NumericalError) else one.lora_A.nbytes + one.lora_B.nbytes for one in found)
        yield size, _task(place, found, work)


def _task(
    place: Place, found: Sequence[Factors | NumericalError], work: Callable[[Place, Sequence[Pair]], T]
) -> Callable[[], T | NumericalError]:
    from lora_lab.linalg.spectra import Pair

    def task() -> T | NumericalError:
        pairs = []
        for factors in found:
            if isinstance(factors, NumericalError):
                return factors
            pairs.append(Pair(place.module, factors.lora_A, factors.lora_B, factors.scaling))
        try:
            return work(place, pairs)
        except NumericalError as error:
            return error

    return task


def _factors_or_faults(deltas: Sequence[Delta | None], reader: Reader) -> Iterator[Factors | NumericalError]:
    """Yield the factors of each delta that is there, or the reason why they cannot be worked with."""
    wanted = [delta for delta in deltas if delta is not None]
    done = 0
    while done < len(wanted):
        try:
            for _, factors in reader.factors_of(wanted[done:]):
                done += 1
                yield factors
        except NumericalError as error:
            done += 1
            yield error


def shape_finding(place: Place) -> Finding:
    """That the shapes of one module differ between adapters."""
    message = (
        f"lora_B @ lora_A of {quoted(place.module)} is {_shapes(place)}, expected one shape: the module is left out."
    )
    return Finding("shape_mismatch", message, place.module)


def _shapes(place: Place) -> str:
    return " and ".join(f"{outputs}×{inputs}" for outputs, inputs in place.shapes)


def adapter_findings(adapters: Sequence[Adapter], labels: Sequence[str]) -> Iterator[Finding]:
    """Yield what the files of each adapter say, and what ΔW leaves out of it, with the adapter's name in front."""
    for adapter, label in zip(adapters, labels, strict=True):
        for finding in (*adapter.findings, *outside_findings(adapter)):
            yield replace(finding, message=f"{label}: {finding.message}")
    yield from _base_findings(adapters)


def _base_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    bases = {adapter.base_model: adapter.name for adapter in adapters if adapter.base_model}
    if len(bases) > 1:
        named = [f"{quoted(base)} ({quoted(name)})" for base, name in bases.items()]
        yield Finding(
            "different_bases",
            f"The adapters were trained on different bases: {in_a_row(named)}; directions of one model mean "
            "little in another.",
        )


def listed(names: Iterable[str]) -> str:
    """Quoted names in a row; the first three, and how many more there are."""
    return in_a_row([quoted(name) for name in names])


def in_a_row(names: Sequence[str]) -> str:
    """Names in a row as they are; the first three, and how many more there are."""
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def module_finding(code: str, modules: Sequence[str], message: str) -> Finding:
    """One finding about one or many modules: `message` with the modules' names at ``{}``."""
    return Finding(code, message.format(listed(modules)), modules[0] if len(modules) == 1 else None)
