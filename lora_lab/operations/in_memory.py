"""W + Σ wᵢ(W′ᵢ − W) as tensors in memory, for whoever goes on in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_lab.domain.progress import Unwatched
from lora_lab.operations.execution import Execution
from lora_lab.operations.merge import plan_merge
from lora_lab.operations.options import MergeOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.extension.contracts import Reader


def merged_tensors(
    adapters: Sequence[Adapter],
    base: Base,
    *,
    reader: Reader,
    options: MergeOptions | None = None,
    device: str = "cpu",
    observer: Observer | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Give every tensor of a merged base with its name, one at a time: the bytes that a merge into files writes.

    Parameters
    ----------
    options : as of a merge; its own ``device`` says where sums are computed
    device : where the tensors are wanted

    Raises
    ------
    AdapterError, CompatibilityError
        something does not fit; before the first tensor.
    NumericalError
        a sum exceeds the type it is stored in, or an input is not finite.
    CancelledError
        the observer no longer wants it.

    Notes
    -----
    Memory for the tensor that is given, some blocks of rows and the factors of one tensor.
    """
    options = options or MergeOptions()
    plan = plan_merge(adapters, base, options)
    execution = Execution(plan, adapters, reader, options, observer or Unwatched())
    return execution.tensors(torch.device(device))


def merged_state_dict(
    adapters: Sequence[Adapter],
    base: Base,
    *,
    reader: Reader,
    options: MergeOptions | None = None,
    device: str = "cpu",
    observer: Observer | None = None,
) -> dict[str, torch.Tensor]:
    """Make the state_dict of a merged base: all of :func:`merged_tensors`.

    A layer that is tied to another has, as in the files, only the name that the files have; ``load_state_dict`` of a
    tied model wants ``strict=False``.
    """
    return dict(merged_tensors(adapters, base, reader=reader, options=options, device=device, observer=observer))
