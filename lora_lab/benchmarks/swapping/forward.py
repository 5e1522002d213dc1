"""What a token costs with the adapter merged and with its factors beside the weight, and when merging pays off.

Merged, a layer multiplies by one matrix: x·W′ᵀ. Unmerged it multiplies by three: x·Wᵀ + s·(x·Aᵀ)·Bᵀ, and with DoRA each
output by its gain. All else of a model is the same for both, so the difference of the adapted layers' times, over the
tokens of one step, is what merging saves a token. A swap that takes t seconds pays off after t/saving tokens. Source:
LoRA, arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.functional import linear

from lora_lab.benchmarks.rounds import Contestant
from lora_lab.benchmarks.spread import Spread, spread_of
from lora_lab.domain.report import Column, ColumnKind, Finding, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_lab.benchmarks.rounds import Rounds
    from lora_lab.benchmarks.swapping.workload import Workload
    from lora_lab.extension.contracts import SwapModule, SwapScene

    _Parts = tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None], ...]

BATCHES: Final = (1, 8, 32)
_MERGED, _UNMERGED = "merged", "unmerged"
_COLUMNS: Final = (
    Column("strategy", "Strategy", ColumnKind.TEXT),
    Column("batch", "Batch", ColumnKind.INTEGER, formula="sequences that each get one token in a step"),
    Column(
        "tokens", "Break-even tokens", formula="swap / saving a token; undefined where nothing is saved for certain"
    ),
    Column("swap_seconds", "Swap", unit="s", formula="p50"),
    Column("merged_seconds", "Merged step", unit="s", formula="p50 of x·W′ᵀ over all adapted layers"),
    Column("unmerged_seconds", "Unmerged step", unit="s", formula="p50 of x·Wᵀ + s·(x·Aᵀ)·Bᵀ"),
    Column(
        "saving_seconds_per_token",
        "Saved a token",
        unit="s",
        formula="median of unmerged − merged in one round, / batch",
        is_wide=True,
    ),
    Column("saving_low_seconds_per_token", "at least", unit="s", formula="P ≥ 97.5 %", is_wide=True),
)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One adapted layer: W as it lies in memory, and factors of its type, the scaling multiplied into B.

    A third one is DoRA's gain of every output, which a server keeps.
    """

    weight: torch.Tensor
    factors: _Parts

    def merged(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight)

    def unmerged(self, x: torch.Tensor) -> torch.Tensor:
        out = linear(x, self.weight)
        for A, B, gain in self.factors:
            out += linear(linear(x, A), B)
            if gain is not None:
                out *= gain
        return out


def forward_contestants(
    workload: Workload, scenes: Sequence[SwapScene], adapter: int, batches: Sequence[int], seed: int
) -> tuple[list[Contestant], int]:
    """Steps of every batch size through all adapted layers, merged and unmerged, over the weights of `scenes` in turn.

    Whoever runs next takes the next weights, which nobody has touched for longest.

    Returns
    -------
    contestants, and how many layers they go through; none of either where no adapted layer multiplies by its weight as
    it is stored
    """
    factors = [_stored(module, adapter) for module in scenes[0].modules] if scenes else []
    stacks = [list(_layers(workload, scene, factors)) for scene in scenes]
    if not stacks or not stacks[0]:
        return [], 0
    generator = torch.Generator().manual_seed(seed)
    first = stacks[0][0].weight
    widths = {layer.weight.shape[1] for layer in stacks[0]}
    turn = itertools.count()

    def step(kind: str, inputs: Mapping[int, torch.Tensor], _: int) -> None:
        with torch.inference_mode():
            for layer in stacks[next(turn) % len(stacks)]:
                getattr(layer, kind)(inputs[layer.weight.shape[1]])

    contestants: list[Contestant] = []
    for batch in batches:
        inputs = {
            width: torch.randn((batch, width), generator=generator).to(first.device, first.dtype)
            for width in sorted(widths)
        }

        contestants += [Contestant(f"{kind} {batch}", partial(step, kind, inputs)) for kind in (_MERGED, _UNMERGED)]
    return contestants, len(stacks[0])


def break_even_table(rounds: Rounds | None, swaps: Mapping[str, float], batches: Sequence[int]) -> Table:
    """How many tokens of one adapter have to follow before a swap of each strategy has paid off.

    Parameters
    ----------
    rounds : in which the steps were measured
    swaps : median seconds of every strategy that merges
    """
    rows: list[dict[str, Any]] = []
    for batch in batches if rounds is not None else ():
        assert rounds is not None
        merged, unmerged = (rounds.samples[f"{kind} {batch}"] for kind in (_MERGED, _UNMERGED))
        saved = spread_of([slow - fast for fast, slow in zip(merged, unmerged, strict=True)])
        for strategy, seconds in swaps.items():
            rows.append(
                {
                    "strategy": strategy,
                    "batch": batch,
                    "tokens": tokens_until(seconds, saved, batch),
                    "swap_seconds": seconds,
                    "merged_seconds": spread_of(merged).p50,
                    "unmerged_seconds": spread_of(unmerged).p50,
                    "saving_seconds_per_token": saved.p50 / batch,
                    "saving_low_seconds_per_token": saved.low / batch,
                }
            )
    return Table("break_even", "When merging pays off", _COLUMNS, tuple(rows), key="strategy")


def break_even_findings(table: Table) -> tuple[Finding, ...]:
    """Say for which batches it cannot be told when merging pays off."""
    batches = sorted({row["batch"] for row in table.rows if row["tokens"] is None})
    if not batches:
        return ()
    return (
        Finding(
            "saves_nothing_for_certain",
            f"In steps of {', '.join(map(str, batches))} merged layers are not faster for certain, so that it is "
            "undefined after how many tokens merging pays off; more --repeats may tell.",
        ),
    )


def tokens_until(seconds: float, saved: Spread, batch: int) -> float | None:
    """Tokens after which a swap of `seconds` has paid off; None where the saving of a step may be none at all.

    Examples
    --------
    >>> tokens_until(2.0, spread_of([0.1] * 10), 4)
    80.0
    """
    return seconds / (saved.p50 / batch) if saved.low > 0 else None


def _stored(module: SwapModule, adapter: int) -> _Parts:
    """Factors in the type of the weight, as a server that computes in it keeps them.

    Magnitudes stand for DoRA's gains: to multiply by either takes as long.
    """
    dtype = module.weight.dtype
    return tuple(
        (
            part.lora_A.to(dtype),
            (part.lora_B * part.scaling).to(dtype),
            None if part.magnitude is None else part.magnitude.to(dtype),
        )
        for part in module.adapters[adapter]
    )


def _layers(workload: Workload, scene: SwapScene, factors: Sequence[_Parts]) -> Iterator[_Layer]:
    for place, module, own in zip(workload.places, scene.modules, factors, strict=True):
        if place.is_multiplied:
            yield _Layer(module.weight, own)
