"""The swap benchmark: strategies in turns on weights of their own, checked before a time is given."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from lora_lab.benchmarks.copying import COPY as _COPY
from lora_lab.benchmarks.copying import CopyLimit, cache_findings, sets_of_weights
from lora_lab.benchmarks.measurement import Measurement
from lora_lab.benchmarks.memory import available_bytes
from lora_lab.benchmarks.rounds import Contestant, Rounds
from lora_lab.benchmarks.spread import spread_of
from lora_lab.benchmarks.swapping.exactness import judged
from lora_lab.benchmarks.swapping.forward import (
    BATCHES,
    break_even_findings,
    break_even_table,
    forward_contestants,
)
from lora_lab.benchmarks.swapping.stall import WRONG, Stall
from lora_lab.benchmarks.swapping.table import limits_scalars, strategies_table, timed_cells, workload_scalars
from lora_lab.benchmarks.swapping.workload import Workload
from lora_lab.domain.figures import size
from lora_lab.domain.progress import Unwatched, stop_if_cancelled
from lora_lab.domain.report import Finding
from lora_lab.errors import CompatibilityError, OperationError, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.benchmarks.swapping.exactness import Exactness
    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report
    from lora_lab.extension.contracts import Reader, SwapScene, SwapStrategy

# Before times are taken one block of so many is looked at, of every weight; afterwards all of them.
_SAMPLED: Final = 8
# Weights, as much again for what is kept, and some for the work.
_ROOM: Final = 2.3


@dataclass(frozen=True, slots=True)
class SwapOptions:
    """What is wished for.

    repeats : rounds that are kept
    batches : sequences in one step, of which the break-even is told
    modules : globs; none means all
    attributed : names the owner of a strategy around everything that it does
    """

    repeats: int = 10
    batches: tuple[int, ...] = BATCHES
    modules: tuple[str, ...] = ()
    device: str = "cpu"
    seed: int = 0
    attributed: Callable[[SwapStrategy], AbstractContextManager[None]] = lambda _: nullcontext()


@dataclass(slots=True)
class _Bench:
    """One run."""

    workload: Workload
    options: SwapOptions
    measurement: Measurement
    observer: Observer
    total: int
    copies: int = 1
    rounds: list[Rounds] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)

    def new_rounds(self, contestants: Sequence[Contestant]) -> Rounds:
        made = Rounds(contestants, self.measurement.clock, seed=self.options.seed, observer=self.observer)
        made.done, made.total = sum(one.done for one in self.rounds), self.total
        self.rounds.append(made)
        return made

    def attempt(self, stall: Stall, work: Callable[[], object]) -> bool:
        """Let a strategy do something, and say why it takes no part any more where it fails in it."""
        was = stall.failure
        is_done = stall.attempt(work)
        if stall.failure != was:
            self.findings.append(Finding("plugin_failed", stall.failure))
        return is_done

    def say(self, what: str) -> None:
        stop_if_cancelled(self.observer)
        self.observer.advance(self.rounds[-1].done if self.rounds else 0, self.total, what)


def bench_swap(
    adapters: Sequence[Adapter],
    base: Base,
    strategies: Sequence[SwapStrategy],
    *,
    reader: Reader,
    options: SwapOptions | None = None,
    observer: Observer | None = None,
) -> Report:
    """Measure ways of switching a base between two adapters, over all weights that they change.

    Every strategy has weights of its own, as large as the base's and of its types, and all take turns, beside a plain
    copy that tells the memory's bandwidth. After the first swap the weights are compared with what a merge into the
    base gives; a strategy whose result is wrong gets no time.

    Raises
    ------
    AdapterError, CompatibilityError, NumericalError
        an adapter cannot be known or does not fit the base, or no strategy can be used on these two.
    OperationError
        there is no room for one set of weights, or every strategy failed or was wrong.
    CancelledError
        the observer no longer wants it.

    Notes
    -----
    Memory for the weights, and what is kept, of all strategies at once where there is room, else of some at a time.
    """
    options, observer = options or SwapOptions(), observer or Unwatched()
    measurement = Measurement(options.device)
    with Workload(adapters, base, reader, options.modules) as workload:
        runs = (len(strategies) + 1 + 2 * len(options.batches)) * (options.repeats + 1)
        bench = _Bench(workload, options, measurement, observer, runs)
        touched = workload.weight_bytes * len(strategies)
        bench.copies = sets_of_weights(touched, options.device)
        bench.findings += cache_findings(bench.copies * touched, options.device)
        _measure_strategies(bench, strategies)
        workload.require_same_files()
        if not bench.rows:
            raise OperationError(
                f"No strategy got a time: {' '.join(finding.message for finding in bench.findings)}",
                hint="lora-lab strategies lists them.",
            )
        swaps = {row["id"]: row["p50_seconds"] for row in bench.rows if row.pop("is_merged") and "p50_seconds" in row}
        steps = next((one for one in bench.rounds if _COPY not in one.samples), None)
        pays_off = break_even_table(steps, swaps, options.batches)
        return measurement.report(
            "bench swap",
            f"{workload.names[0]} ⇄ {workload.names[1]} on {base.name}",
            tables=(strategies_table(bench.rows), pays_off),
            rounds=bench.rounds,
            scalars=(
                workload_scalars(workload, bench.copies, options.repeats),
                limits_scalars(bench.bandwidths, workload.weight_bytes),
            ),
            findings=(*workload.findings, *bench.findings, *break_even_findings(pays_off)),
        )


def _measure_strategies(bench: _Bench, strategies: Sequence[SwapStrategy]) -> None:
    """Measure strategies, all at once or as many at a time as there is room for; steps of tokens with the first."""
    waiting = list(strategies)
    groups = 0
    while waiting:
        stalls: list[Stall] = []
        like: SwapScene | None = None
        while waiting and (_has_room(bench) or not stalls):
            strategy = waiting.pop(0)
            bench.say(f"preparing {strategy.id}")
            stall = _prepared(bench, strategy, like)
            if stall is not None:
                stalls.append(stall)
                like = stall.scenes[0]
        if stalls:
            groups += 1
            _measure(bench, stalls)
    if not groups:
        raise CompatibilityError(
            f"No strategy can be used: {' '.join(finding.message for finding in bench.findings)}",
            hint="lora-lab strategies lists them.",
        )
    if groups > 1:
        bench.findings.append(
            Finding(
                "not_interleaved",
                f"There was no room for all strategies at once: they were measured in {groups} groups, one after the "
                "other, each beside a copy.",
            )
        )


def _prepared(bench: _Bench, strategy: SwapStrategy, like: SwapScene | None) -> Stall | None:
    """A strategy on weights of its own; None where it cannot work with these adapters, which is said."""
    options = bench.options
    _require_room(bench)
    stall = Stall(strategy, [], [], attributed=partial(options.attributed, strategy))
    notes: list[str] = []
    for _ in range(bench.copies):
        scene = bench.workload.scene(options.device, like)
        if not stall.attempt(partial(_time_preparing, bench, stall, scene)):
            break
        stall.scenes.append(scene)
    if not stall.attempt(lambda: notes.extend(map(str, stall.swappers[0].notes))):
        bench.findings.append(Finding("not_usable", f"{quoted(strategy.id)} was left out: {stall.failure}"))
        return None
    stall.swaps = [0] * bench.copies
    bench.findings += [Finding("note", f"{quoted(strategy.id)}: {note}") for note in notes]
    return stall


def _measure(bench: _Bench, stalls: list[Stall]) -> None:
    """Warm up, check, measure, check again."""
    options = bench.options
    copy = CopyLimit(options.device, bench.workload.weight_bytes)
    contestants = [Contestant(stall.strategy.id, _guarded(bench, stall)) for stall in stalls]
    trial = bench.new_rounds([copy.contestant, *contestants])
    trial.warm_up()
    bench.say("checking")
    sound = _sound(bench, stalls, every=_SAMPLED)
    wanted = {stall.strategy.id for stall in sound}
    trial.keep_only({_COPY, *wanted})
    trial.measure(options.repeats)
    trial.keep_only(())  # what is not run any more is not held any more
    bandwidth = copy.bandwidth(trial.samples[_COPY])
    bench.bandwidths.append(bandwidth)
    del copy
    _measure_steps(bench, [stall for stall in sound if not stall.failure])
    for stall in _judge_last(bench, sound):
        _add_row(bench, stall, trial.samples[stall.strategy.id], bandwidth)


def _guarded(bench: _Bench, stall: Stall) -> Callable[[int], None]:
    """The work of one strategy; one that fails in it takes no part any more."""

    def work(run: int) -> None:
        bench.attempt(stall, lambda: stall.work(run))

    return work


def _sound(bench: _Bench, stalls: Sequence[Stall], *, every: int = 1) -> list[Stall]:
    """Those whose first set holds what it should, one block of `every` being looked at; why others do not is said."""
    found: dict[str, Exactness] = {}
    for adapter in (0, 1):
        here = [stall for stall in stalls if stall.adapter == adapter and bench.attempt(stall, stall.look)]
        works = {stall.strategy.id: (stall.scenes[0], stall.seen) for stall in here}
        found |= judged(works, adapter, bench.observer, every=every)
    sound = []
    for stall in stalls:
        if stall.failure:
            continue
        stall.exactness = found[stall.strategy.id]
        said = list(stall.faults(stall.exactness, bench.workload.delta_norm))
        bench.findings += [finding for finding in said if finding not in bench.findings]
        if not any(finding.code == WRONG for finding in said):
            sound.append(stall)
    return sound


def _measure_steps(bench: _Bench, stalls: Sequence[Stall]) -> None:
    """Steps of tokens, once, over weights that are there anyway."""
    if any(_COPY not in one.samples for one in bench.rounds) or not stalls:
        return
    scenes = [scene for stall in stalls for scene in stall.scenes]
    options = bench.options
    contestants, layers = forward_contestants(bench.workload, scenes, 1, options.batches, options.seed)
    if not contestants:
        return
    if layers < len(bench.workload.places):
        others = len(bench.workload.places) - layers
        bench.findings.append(
            Finding("not_in_steps", f"{others} weights that no layer multiplies by are in no step of tokens.")
        )
    steps = bench.new_rounds(contestants)
    steps.warm_up()
    steps.measure(options.repeats)
    steps.keep_only(())


def _judge_last(bench: _Bench, stalls: Sequence[Stall]) -> list[Stall]:
    """Where the weights have drifted to, and whether the base comes back; those that hold what they should."""
    bench.say("checking")
    for stall in stalls:  # where several sets took turns, the first one catches up
        for _ in range(bench.options.repeats + 1 - stall.swaps[0]):
            bench.measurement.once(partial(_guarded(bench, stall), bench.copies))
    sound = _sound(bench, stalls)
    for stall in sound:
        stall.is_merged = stall.seen.beside(0) is None
        restore = partial(stall.swappers[0].restore, stall.adapter)
        bench.attempt(stall, partial(_time_restoring, bench, stall, restore))
        bench.attempt(stall, stall.look)
    sound = [stall for stall in sound if not stall.failure]
    works = {stall.strategy.id: (stall.scenes[0], stall.seen) for stall in sound}
    found = judged(works, None, bench.observer)
    for stall in sound:
        stall.restored = found[stall.strategy.id]
    return sound


def _time_preparing(bench: _Bench, stall: Stall, scene: SwapScene) -> None:
    stall.prepare_seconds = bench.measurement.once(partial(stall.prepare, scene))


def _time_restoring(bench: _Bench, stall: Stall, restore: Callable[[], None]) -> None:
    stall.restore_seconds = bench.measurement.once(restore)


def _add_row(bench: _Bench, stall: Stall, samples: Sequence[float], bandwidth: float) -> None:
    last, restored = stall.exactness, stall.restored
    assert last is not None
    assert restored is not None
    peak = None if stall.peak_bytes is None else stall.held_bytes + stall.peak_bytes
    bench.rows.append(
        {
            "id": stall.strategy.id,
            **timed_cells(spread_of(samples), stall.moved_bytes, bench.workload.weight_bytes, bandwidth),
            "peak_memory_bytes": peak,
            "kept_bytes": stall.kept_bytes,
            "bit_exact": last.is_exact,
            "relative_drift": last.relative,
            "differing_fraction": last.differing_fraction,
            "swaps": stall.swaps[0],
            "prepare_seconds": stall.prepare_seconds,
            "restore_seconds": stall.restore_seconds,
            "restores_bit_exact": restored.is_exact,
            "is_merged": stall.is_merged,
        }
    )


def _has_room(bench: _Bench) -> bool:
    there = available_bytes(bench.options.device)
    return there is None or there >= _ROOM * bench.copies * bench.workload.weight_bytes


def _require_room(bench: _Bench) -> None:
    if not _has_room(bench):
        needed = round(_ROOM * bench.copies * bench.workload.weight_bytes)
        raise OperationError(
            f"The weights need {size(needed)} of memory on {bench.options.device}, got "
            f"{size(available_bytes(bench.options.device))}.",
            hint="Measure some of the modules: --module 'model.layers.0.*'",
        )
