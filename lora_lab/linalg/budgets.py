"""A number of parameters divided among modules so that least of Σ‖ΔW‖² is lost: a knapsack with few weights.

One more rank of module m is worth σ² of its next value and costs out + in parameters. Among modules of one cost the
largest values are the best, however many there are; so of each cost only the number is to be found, and there are as
many costs as there are kinds of shape. With all numbers but one chosen the last is what is left: two kinds take as many
tries as there are values of one, three the product of two, all of them tried at once.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

import torch

from lora_lab.errors import LoraLabError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Tries beyond which what is worth most per parameter is taken, one after another.
_MOST_TRIES: Final = 1 << 27


def budget_ranks(singular_values: Sequence[torch.Tensor], costs: Sequence[int], parameters: int) -> list[int]:
    """Find the ranks that lose least of Σ‖ΔW‖² within a number of parameters.

    Exact for up to three kinds of cost, and for more as long as 2²⁷ tries decide; beyond that whatever is worth most
    per parameter is taken as long as it fits, and less is lost to that than the σ² of the first that was passed over
    (Everett, Operations Research 11 (1963)).

    Parameters
    ----------
    singular_values : of each module, descending
    costs : out + in of each
    parameters : the most that all of them take

    Returns
    -------
    the rank of each module; 0 leaves it out

    Examples
    --------
    >>> budget_ranks([torch.tensor([3.0, 2.0]), torch.tensor([2.5, 1.0])], [10, 10], 30)
    [2, 1]
    """
    if parameters < 0:
        raise LoraLabError(f"The number of parameters is {parameters}, expected none or more.")
    squares = [[one for one in values.to(torch.float64).square().tolist() if one > 0.0] for values in singular_values]
    kinds: dict[int, list[tuple[float, int]]] = {}  # by cost: what each rank is worth, and of which module it is
    for place, own in enumerate(squares):
        kinds.setdefault(costs[place], []).extend((-one, place) for one in own)
    # The kind with the most values comes last: its number follows from the others.
    ordered = sorted(((cost, sorted(ranks)) for cost, ranks in kinds.items()), key=lambda kind: (len(kind[1]), kind[0]))
    tries = 1
    for _, ranks in ordered[:-1]:
        tries *= len(ranks) + 1
    if tries > _MOST_TRIES:
        return _greedy(squares, costs, parameters)
    found = [0] * len(squares)
    worth = [torch.tensor([0.0, *(-one for one, _ in ranks)], dtype=torch.float64).cumsum(0) for _, ranks in ordered]
    for (_, ranks), number in zip(ordered, _best([cost for cost, _ in ordered], worth, parameters)[1], strict=True):
        for _, place in ranks[:number]:
            found[place] += 1
    return found


def _best(costs: Sequence[int], worth: Sequence[torch.Tensor], left: int) -> tuple[float, tuple[int, ...]]:
    """The most that is held, and how many ranks of each kind hold it.

    Parameters
    ----------
    worth : of each kind, of so many of its ranks from none on
    """
    if not costs:
        return 0.0, ()
    most = min(left // costs[0], len(worth[0]) - 1)
    if len(costs) == 1:
        return float(worth[0][most]), (most,)
    if len(costs) == 2:
        first = torch.arange(most + 1)
        second = ((left - first * costs[0]) // costs[1]).clamp(max=len(worth[1]) - 1)
        held = worth[0][: most + 1] + worth[1][second]
        best = int(held.argmax())
        return float(held[best]), (best, int(second[best]))
    tried = ((number, _best(costs[1:], worth[1:], left - number * costs[0])) for number in range(most + 1))
    number, (others, numbers) = max(tried, key=lambda one: float(worth[0][one[0]]) + one[1][0])
    return float(worth[0][number]) + others, (number, *numbers)


def _greedy(squares: Sequence[Sequence[float]], costs: Sequence[int], parameters: int) -> list[int]:
    ranks = [0] * len(squares)
    queue = [(-own[0] / costs[place], place) for place, own in enumerate(squares) if own]
    heapq.heapify(queue)
    left = parameters
    while queue:
        _, place = heapq.heappop(queue)
        if costs[place] > left:
            continue  # the module's other values are worth less at the same cost
        left -= costs[place]
        ranks[place] += 1
        own = squares[place]
        if ranks[place] < len(own):
            heapq.heappush(queue, (-own[ranks[place]] / costs[place], place))
    return ranks
