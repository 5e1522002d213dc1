"""Strategies that merge: what the model computes with is one matrix for each weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.errors import CompatibilityError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from lora_lab.extension.contracts import SwapFactors, SwapScene
    from lora_lab.linalg.in_place import Ready
    from lora_lab.linalg.updates import Term


class Merged:
    """What strategies that merge share: every adapter's update of every weight, made ready when swaps are prepared."""

    def __init__(self, scene: SwapScene, first: int) -> None:
        self.scene = scene
        count = len(scene.modules[0].adapters)
        self.put = [ready_updates(scene, number) for number in range(count)]
        self.merge(first)
        self.notes: tuple[str, ...] = ()

    @property
    def kept_bytes(self) -> int:
        """Bytes of the factors in the types that they are multiplied in."""
        return sum(step.nbytes for steps in self.put for step in steps)

    def beside(self, module: int) -> None:
        """Nothing: all is merged."""
        del module

    def merge(self, new: int, kept: Sequence[torch.Tensor] | None = None) -> None:
        """Merge `new` into the weights, which are the base's, or into what was kept of them."""
        from lora_lab.linalg.in_place import Change, merge_all

        merge_all(
            [
                Change(module.weight, step, kept=None if kept is None else kept[number])
                for number, (module, step) in enumerate(zip(self.scene.modules, self.put[new], strict=True))
            ]
        )

    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(module.weight.nbytes for module in self.scene.modules)

    def factor_bytes(self, *numbers: int) -> int:
        """Bytes of adapters' factors as they are stored."""
        from lora_lab.benchmarks.swapping.workload import factor_bytes

        return sum(factor_bytes(module.adapters[number]) for module in self.scene.modules for number in numbers)


class Reloading(Merged):
    """The base's weights are read from their files again: W ← round(W_file + ΔB)."""

    def moved_bytes(self, old: int, new: int) -> int:
        """The files' bytes are read and written, and then those of the weights once more."""
        del old
        return 4 * self.weight_bytes() + self.factor_bytes(new)

    def swap(self, old: int, new: int) -> None:
        """Read the base, merge."""
        self.restore(old)
        self.merge(new)

    def restore(self, old: int) -> None:
        """Read the base."""
        from lora_lab.linalg.threads import in_lanes, worker_count

        del old

        def read(number: int) -> None:
            weight = self.scene.modules[number].weight
            weight.copy_(self.scene.base_rows(number, 0, weight.shape[0]))

        in_lanes(read, range(len(self.scene.modules)), worker_count())


class Copying(Merged):
    """The base's weights are kept, for twice the memory: W′ ← round(W_kept + ΔB)."""

    def __init__(self, scene: SwapScene, first: int) -> None:
        self._kept = [module.weight.clone() for module in scene.modules]
        super().__init__(scene, first)

    @property
    def kept_bytes(self) -> int:
        """A second set of weights, and the factors."""
        return super().kept_bytes + self.weight_bytes()

    def moved_bytes(self, old: int, new: int) -> int:
        """The kept weights are read, the weights written."""
        del old
        return 2 * self.weight_bytes() + self.factor_bytes(new)

    def swap(self, old: int, new: int) -> None:
        """Merge into what was kept."""
        del old
        self.merge(new, self._kept)

    def restore(self, old: int) -> None:
        """Copy back."""
        del old
        for module, kept in zip(self.scene.modules, self._kept, strict=True):
            module.weight.copy_(kept)


class Subtracting(Merged):
    """ΔA is subtracted, the base's bits not being known: round(round(W′ − ΔA) + ΔB), in one pass or two."""

    def __init__(self, scene: SwapScene, first: int, *, is_fused: bool) -> None:
        from lora_lab.linalg.device_swap import Swaps

        require_no_dora(scene)
        super().__init__(scene, first)
        self._is_fused = is_fused
        numbers = range(len(self.put))
        pairs = [(old, new) for old in numbers for new in numbers if old != new] if is_fused else []
        ends = [pair for number in numbers for pair in ((number, None), (None, number))]
        self._change = Swaps(
            [module.weight for module in scene.modules], self.put, scene.device, recorded=[*pairs, *ends]
        )
        self.notes = (self._change.note,) if self._change.note else ()

    def moved_bytes(self, old: int, new: int) -> int:
        """Every weight is read and written once, or twice."""
        return 2 * self.weight_bytes() * (1 if self._is_fused else 2) + self.factor_bytes(old, new)

    def swap(self, old: int, new: int) -> None:
        """In one pass, or in two."""
        if self._is_fused:
            self._change(old, new)
        else:
            self._change(old, None)
            self._change(None, new)

    def restore(self, old: int) -> None:
        """Subtract."""
        self._change(old, None)


def require_no_dora(scene: SwapScene) -> None:
    """Refuse DoRA where the base's weight is not at hand."""
    for module in scene.modules:
        for parts in module.adapters:
            if any(part.magnitude is not None for part in parts):
                raise CompatibilityError(
                    f"{quoted(module.name)} has DoRA, whose norms are of the base's weight: nothing can be subtracted "
                    "without it.",
                    hint="from_copy and reload know the base.",
                )


def ready_updates(scene: SwapScene, number: int | None, *, device: str | None = None) -> list[Ready]:
    """Updates by an adapter of every weight, or by none, on the device of the scene or another."""
    from lora_lab.linalg.in_place import ready
    from lora_lab.linalg.threads import one_thread
    from lora_lab.linalg.updates import Update

    made = []
    with one_thread():  # many small conversions
        for module in scene.modules:
            terms = [] if number is None else [term_of(part) for part in module.adapters[number]]
            shape = (module.weight.shape[0], module.weight.shape[1])
            made.append(ready(Update(module.name, shape, terms), device or scene.device))
    return made


def term_of(part: SwapFactors) -> Term:
    """The same as a term of an update, on the processor, where updates are made."""
    from lora_lab.linalg.updates import Term

    magnitude = None if part.magnitude is None else part.magnitude.cpu()
    return Term(part.lora_A.cpu(), part.lora_B.cpu(), part.scaling, 1.0, magnitude, part.is_by_column)
