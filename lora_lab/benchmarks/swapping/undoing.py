"""The strategy that knows what subtraction cannot: the base, bit for bit, from a few bits an element."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from lora_lab.benchmarks.swapping.merged import Merged, require_no_dora
from lora_lab.errors import CompatibilityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from lora_lab.extension.contracts import SwapScene
    from lora_lab.linalg.kept_residuals import KeptResidual

# Elements of a block on a device that is no processor: its float64 sums take 128 MiB.
_DEVICE_ELEMENTS: Final = 1 << 24


class Undoing(Merged):
    """Subtract, correct by the kept residual, merge: W = round(W′ − ΔA) + residual, then round(W + ΔB), in one pass.

    What is kept of each adapter and block of rows is what its undo file holds, see :mod:`lora_lab.linalg.residuals`.
    """

    def __init__(self, scene: SwapScene, first: int) -> None:
        from lora_lab.linalg.device import has_float64
        from lora_lab.linalg.residuals import Inverse
        from lora_lab.linalg.threads import one_thread

        require_no_dora(scene)
        if not has_float64(scene.device):
            raise CompatibilityError(
                f"{scene.device} has no float64, in which W′ − ΔA has the same bits in any order of summation.",
                hint="from_copy is exact there.",
            )
        super().__init__(scene, first)
        with one_thread():  # many small conversions
            self._inverses = [
                [Inverse(step.update, module.weight.dtype) for module, step in zip(scene.modules, steps, strict=True)]
                for steps in self.put
            ]
        self._residuals: list[dict[tuple[int, int], KeptResidual]] = []
        for number in range(len(self.put)):
            self._residuals.append({})
            self._each(partial(self._learn, number))

    @property
    def kept_bytes(self) -> int:
        """Residuals, and the factors."""
        return super().kept_bytes + sum(one.nbytes for blocks in self._residuals for one in blocks.values())

    def moved_bytes(self, old: int, new: int) -> int:
        """Every weight is read and written once; the residual of the old adapter is read."""
        residual = sum(one.nbytes for one in self._residuals[old].values())
        return 2 * self.weight_bytes() + residual + self.factor_bytes(old, new)

    def swap(self, old: int, new: int) -> None:
        """Block by block."""

        def one(module: int, first: int, end: int) -> None:
            weight = self.scene.modules[module].weight[first:end]
            base = self._base(old, module, first, end)
            weight.copy_(self.put[new][module].update.moved(base, first))

        self._each(one)

    def restore(self, old: int) -> None:
        """Block by block."""

        def one(module: int, first: int, end: int) -> None:
            self.scene.modules[module].weight[first:end].copy_(self._base(old, module, first, end))

        self._each(one)

    def _learn(self, number: int, module: int, first: int, end: int) -> None:
        """Find the residual of one block."""
        from lora_lab.linalg.kept_residuals import kept_residual

        weight = self.scene.modules[module].weight
        before = self.scene.base_rows(module, first, end).to(weight.device)
        after = self.put[number][module].update.moved(before, first).to(weight.dtype)
        self._residuals[number][module, first] = kept_residual(before, self._predicted(number, module, after, first))

    def _base(self, old: int, module: int, first: int, end: int) -> torch.Tensor:
        from lora_lab.linalg.kept_residuals import restore_kept

        after = self.scene.modules[module].weight[first:end]
        return restore_kept(self._predicted(old, module, after, first), self._residuals[old][module, first])

    def _predicted(self, number: int, module: int, after: torch.Tensor, first: int) -> torch.Tensor:
        none = after.new_empty((after.shape[0], 0))
        return self._inverses[number][module].predicted(after, first, none).contiguous()

    def _each(self, work: Callable[[int, int, int], None]) -> None:
        """Do `work` on every block, side by side on the processor."""
        from lora_lab.linalg.threads import in_lanes, worker_count

        lanes = worker_count() if self.scene.device == "cpu" else 1
        in_lanes(lambda place: work(*place), list(self._blocks()), lanes)

    def _blocks(self) -> Iterator[tuple[int, int, int]]:
        for number, (module, step) in enumerate(zip(self.scene.modules, self.put[0], strict=True)):
            rows, columns = module.weight.shape
            on_device = max(1, _DEVICE_ELEMENTS // max(1, columns))
            height = step.update.rows_at_once if self.scene.device == "cpu" else on_device
            for first in range(0, rows, height):
                yield number, first, min(rows, first + height)
