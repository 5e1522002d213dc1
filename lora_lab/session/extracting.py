"""How a session makes an adapter out of two checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.session.devices import told_of_device
from lora_lab.session.proving import Proving

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report


class Extracting(Proving):
    """Extracts what a session can open."""

    def extract(
        self,
        base: str,
        finetuned: str,
        *,
        output: str | Path,
        rank: int | None = None,
        energy: float | None = None,
        save_others: bool = False,
        dtype: str = "float32",
        seed: int | None = None,
        modules: Sequence[str] = (),
        overwrite: bool = False,
        dry_run: bool = False,
        observer: Observer | None = None,
    ) -> Report:
        """Make a LoRA of a full fine-tune: the best approximation of W_ft − W₀ of low rank, with the error it leaves.

        Parameters
        ----------
        base, finetuned : locators of two checkpoints of one model
        output : the folder to appear, as PEFT reads it
        rank : of every module, 16 when nothing is given; with `energy` the most that it may be
        energy : share in (0, 1] of ‖W_ft − W₀‖² that every module keeps, by the smallest rank that does
        save_others : take norms, biases and what the base lacks along whole, as modules_to_save
        dtype : float32, bfloat16, float16 or float64 of the factors
        seed : of what is drawn; None is the session's
        modules : globs of the matrices that are factored; none means all
        overwrite, dry_run : replace `output` when it is there; compute everything, and write nothing

        Raises
        ------
        LoraLabError
            something does not fit, or the disk, or the observer, says no; nothing was written.
        """
        from lora_lab.formats.factors import FactorReader
        from lora_lab.operations.extract import extract
        from lora_lab.operations.extraction import ExtractOptions
        from lora_lab.operations.options import dtype_named

        drawn = self.seed if seed is None else seed
        options = ExtractOptions(rank, energy, save_others, dtype_named(dtype), drawn, tuple(modules))
        before, after = self._whole_bases((base, finetuned), dry_run=dry_run, observer=observer)
        with self._hashing(before, after, is_dry=dry_run) as hashing:
            report = extract(
                before,
                after,
                Path(output),
                reader=FactorReader(),
                options=options,
                inputs=hashing.records,
                overwrite=overwrite,
                dry_run=dry_run,
                observer=observer,
            )
        return told_of_device(report, self.device, "extract")
