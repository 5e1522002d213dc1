"""Writing an undo file while its merge goes on, each weight being in memory then as it was and as it is."""

from __future__ import annotations

import json
import os
import struct
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from lora_lab.domain.plan import StepKind
from lora_lab.domain.report import Column, ColumnKind, Scalars
from lora_lab.errors import CompatibilityError, OperationError, quoted
from lora_lab.linalg.residual_coding import ChunkEncoder
from lora_lab.linalg.residuals import Inverse, residual_of
from lora_lab.operations.layout import header_of
from lora_lab.operations.room import Beside
from lora_lab.operations.running import Outcome
from lora_lab.operations.undo import CODED, FORMAT, HELD_BY
from lora_lab.storage.atomic import explained
from lora_lab.storage.files import sha256_of
from lora_lab.storage.reading import torch_dtype
from lora_lab.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    import torch

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.plan import Part, Plan, PlannedFile, Step
    from lora_lab.linalg.residual_coding import Sparse
    from lora_lab.operations.execution import Execution
    from lora_lab.operations.options import MergeOptions
    from lora_lab.operations.weights import Band
    from lora_lab.storage.disk import Disk
    from lora_lab.storage.staging import Finished, StagedFolder

    _Seen = tuple[Sparse, torch.Tensor]

_PLACEHOLDER: Final = "0" * 64
_OTHER_BYTES: Final = 4096  # of a tensor, or of the file, that are no residuals
_PER_ELEMENTS: Final = 1 << 13  # for so many elements a byte of bookkeeping
_FARTHEST: Final = 10**16  # more digits than any offset will have
COLUMNS: Final = (
    Column("path", "Undo file", ColumnKind.TEXT),
    Column("size_bytes", "Size", ColumnKind.BYTES, unit="bytes"),
    Column("sha256", "sha256", ColumnKind.TEXT, is_wide=True),
    Column("weights_bytes", "For weights of", ColumnKind.BYTES, unit="bytes"),
    Column("changed_fraction", "Residuals", formula="share of the elements that W′ − Δ does not give back"),
    Column("bits_per_weight", "Bits per weight", formula="8·bytes of residuals / changed weights"),
)


@dataclass(frozen=True)
class Behind:
    """What another undo file says of a base.

    sha256, headers : by path of the base's files
    documents : by name
    """

    sha256: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, bytes] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)


class UndoWriter:
    """A witness of a merge that writes its undo file; use as a context manager around the merge, then :meth:`finish`.

    Parameters
    ----------
    path : the file to appear
    options : of the merge
    overwrite : whether a file already there is replaced
    behind : what is known of a base that is nowhere

    Raises
    ------
    OperationError
        the file is there, or inside the output, or its folder is not.
    CompatibilityError
        the output cannot hold the base's bits.

    Notes
    -----
    A residual of a weight that is multiplied by an adapter (DoRA) or replaced (saved modules, trained tokens) is not
    sparse; it takes at most the bytes of the weight itself and some dozens a million elements.
    """

    def __init__(
        self,
        path: Path,
        output: Path,
        plan: Plan,
        base: Base,
        adapters: Sequence[Adapter],
        options: MergeOptions,
        *,
        disk: Disk,
        overwrite: bool = False,
        behind: Behind | None = None,
    ) -> None:
        self._path = Path(os.path.abspath(path))  # noqa: PTH100 - the name as given, not where a link leads
        self._temporary = self._path.with_name(f".{self._path.name}.lora_lab.part")
        self._output = Path(os.path.abspath(output))  # noqa: PTH100
        self._plan = plan
        self._base = base
        self._adapters = adapters
        self._options = options
        self._disk = disk
        self._is_overwriting = overwrite
        self._behind = behind or Behind()
        self._sections: dict[str, tuple[int, int]] = {}
        self._hashes: dict[str, str] = {}
        self._headers = {file.name: kept for file in plan.files if (kept := self._other_header(file)) is not None}
        self._documents = self._other_documents()
        self._encoder: ChunkEncoder | None = None
        self._dtype: torch.dtype | None = None
        self._gains: list[torch.Tensor] = []  # of the tensor at hand, in the order in which they are asked for again
        self._begun = self._at = 0
        self._residuals = self._residual_bytes = self._weights = self._weights_bytes = 0
        self._require_wide()
        self._require_free()

    @property
    def room(self) -> Beside:
        """What the file will take: about a bit of every weight that is added to, and at most the weight itself."""
        most = usual = sum(map(len, (*self._headers.values(), *self._documents.values()))) + _OTHER_BYTES
        for step in (step for file in self._plan.files for step in file.steps if _is_of_base(step)):
            assert step.source is not None
            whole = step.source.size_bytes + step.source.elements // _PER_ELEMENTS + _OTHER_BYTES
            most += whole
            usual += step.source.elements // 8 if all(_is_plain(part) for part in step.parts) else whole
        return Beside(self._path, usual, most)

    def __enter__(self) -> Self:
        with explained(self._path):
            self._disk.remove(self._temporary)
            self._descriptor = self._disk.create(self._temporary)
        self._at = self._start = len(self._header(self._widest()))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="undo")
        paths = [stamp.path for stamp in self._base.shards if stamp.path not in self._behind.sha256]
        paths += [stamp.path for adapter in self._adapters for stamp in adapter.files]
        self._files: dict[str, Future[str]] = {path: self._pool.submit(sha256_of, path) for path in paths}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._disk.close(self._descriptor)
        with suppress(OSError):
            self._disk.remove(self._temporary)

    # The witness.

    def begin(self, step: Step) -> None:
        """The rows of this tensor come next."""
        self._encoder = None
        if _is_of_base(step):
            assert step.source is not None
            self._dtype = torch_dtype(step.source.dtype)
            self._encoder = ChunkEncoder(prod(step.shape), step.source.dtype.bits)
            self._begun = self._at
            self._gains = []

    def prepared(self, band: Band) -> Inverse | None:
        """The inverse of a band's update."""
        if self._encoder is None or self._dtype is None:
            return None
        inverse = Inverse(band.update, self._dtype)
        self._gains.append(inverse.column_gains)
        return inverse

    def look(self, prepared: Inverse | None, before: torch.Tensor, after: torch.Tensor, first: int) -> _Seen | None:
        """What the prediction of these rows lacks, and what it must be told."""
        if prepared is None:
            return None
        gains = prepared.update.row_gains(before, first)
        return residual_of(before, prepared.predicted(after, first, gains)), gains

    def take(self, element: int, seen: _Seen | None) -> None:
        """Code what is complete."""
        if self._encoder is None or seen is None:
            return
        residual, gains = seen
        self._residuals += len(residual.positions)
        self._gains.append(gains)
        for chunk in self._encoder.put(element, residual):
            self._write(chunk)

    def end(self, step: Step, sha256: str) -> None:
        """Code the rest."""
        if self._encoder is None:
            return
        assert step.source is not None
        for chunk in self._encoder.finish():
            self._write(chunk)
        self._write(np.array(self._encoder.sizes, dtype="<u4").tobytes())
        for gains in self._gains:
            self._write(gains.numpy().astype("<f8").tobytes())
        self._sections[f"residual:{step.name}"] = (self._begun, self._at)
        self._residual_bytes += self._at - self._begun
        self._weights += prod(step.shape)
        self._weights_bytes += step.source.size_bytes
        self._hashes[step.name] = sha256

    # The file.

    def finish(self, outputs: Mapping[str, Finished]) -> Scalars:
        """Complete the file and give it its name.

        Parameters
        ----------
        outputs : the files of the merge, all of them finished

        Returns
        -------
        what a receipt says about it
        """
        for kind, contents in (("header", self._headers), ("document", self._documents)):
            for name, content in contents.items():
                begun = self._at
                self._write(content)
                self._sections[f"{kind}:{name}"] = (begun, self._at)
        header = self._header(self._document({name: file.sha256 for name, file in outputs.items()}))
        header = struct.pack("<Q", self._start - 8) + header[8:].ljust(self._start - 8)
        with explained(self._path):
            self._disk.write_at(self._descriptor, header, 0)
            self._disk.sync(self._descriptor)
            self._require_free()
            self._disk.rename(self._temporary, self._path)
            self._disk.sync_folder(self._path.parent)
        values = {
            "path": str(self._path),
            "size_bytes": self._at,
            "sha256": sha256_of(self._path),
            "weights_bytes": self._weights_bytes,
            "changed_fraction": self._residuals / self._weights if self._weights else None,
            "bits_per_weight": 8 * self._residual_bytes / self._weights if self._weights else None,
        }
        return Scalars("undo", "Undo file", COLUMNS, values)

    def _write(self, content: bytes) -> None:
        with explained(self._path):
            self._disk.write_at(self._descriptor, content, self._at)
        self._at += len(content)

    def _header(self, document: Mapping[str, Any]) -> bytes:
        """The header for sections that are complete; others at offsets that no file reaches."""
        steps = [step for file in self._plan.files for step in file.steps if _is_of_base(step)]
        names = [f"residual:{step.name}" for step in steps]
        names += [f"header:{name}" for name in self._headers] + [f"document:{name}" for name in self._documents]
        entries: dict[str, Any] = {
            "__metadata__": {"document": json.dumps(document, allow_nan=False), "format": FORMAT}
        }
        for name in sorted(names, key=lambda name: self._sections.get(name, (_FARTHEST, 0))):
            begin, end = self._sections.get(name, (2 * _FARTHEST, 3 * _FARTHEST))
            offsets = [begin - self._start, end - self._start] if name in self._sections else [begin, end]
            entries[name] = {"dtype": CODED.value, "shape": [end - begin], "data_offsets": offsets}
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        return struct.pack("<Q", len(text)) + text + b" " * (-len(text) % 8)

    def _widest(self) -> dict[str, Any]:
        """The document with every hash that will be in it, which all have one length."""
        steps = [step for file in self._plan.files for step in file.steps if _is_of_base(step)]
        return self._filled(lambda _: _PLACEHOLDER, {step.name: _PLACEHOLDER for step in steps}, {})

    def _document(self, merged: Mapping[str, str]) -> dict[str, Any]:
        return self._filled(self._sha256, self._hashes, merged)

    def _sha256(self, path: str) -> str:
        return self._behind.sha256.get(path) or self._files[path].result()

    def _filled(self, sha256: Any, tensors: Mapping[str, str], merged: Mapping[str, str]) -> dict[str, Any]:
        files = [
            {
                "name": Path(stamp.path).name,
                "size_bytes": stamp.size_bytes,
                "sha256": sha256(stamp.path),
                "merged_sha256": merged.get(Path(stamp.path).name, _PLACEHOLDER),
            }
            for stamp in self._base.shards
        ]
        adapters = [
            {
                "name": adapter.name,
                "locator": adapter.locator,
                "files": {Path(stamp.path).name: sha256(stamp.path) for stamp in adapter.files},
            }
            for adapter in self._adapters
        ]
        recipe = {
            "adapters": adapters,
            "strengths": list(self._options.strengths_for(self._adapters)),
            "modules": list(self._options.modules),
            "partial": self._options.is_partial,
            "saved_modules": self._options.saved_modules.value,
            "saved_modules_from": self._options.saved_modules_from,
        }
        return {"lora_lab": __version__, "recipe": recipe, "files": files, "tensors": dict(sorted(tensors.items()))}

    def _other_header(self, file: PlannedFile) -> bytes | None:
        shard = next(stamp.path for stamp in self._base.shards if Path(stamp.path).name == file.name)
        header = self._behind.headers.get(shard) or header_of(shard)
        return None if header == file.header else header

    def _other_documents(self) -> dict[str, bytes]:
        """Documents of the base that the merge writes anew."""
        root = Path(self._base.path)
        found = {name: (root / name).read_bytes() for name in self._plan.documents if (root / name).is_file()}
        found.update(self._behind.documents)
        return {name: content for name, content in found.items() if content != self._plan.documents.get(name)}

    def _require_wide(self) -> None:
        for step in (step for file in self._plan.files for step in file.steps):
            if step.source is None or step.kind is StepKind.COPY or step.name != step.source.name:
                continue
            if step.dtype not in HELD_BY.get(step.source.dtype, (step.source.dtype,)):
                raise CompatibilityError(
                    f"{quoted(step.name)} is {step.source.dtype} in the base and {step.dtype} in the output, which does"
                    " not hold its bits: no undo file can give them back.",
                    hint="Merge without --dtype, or into float32; or keep the base.",
                )

    def _require_free(self) -> None:
        if self._path.is_relative_to(self._output):
            raise OperationError(
                f"{quoted(self._path)} lies in the output, which appears only when everything is done.",
                hint="Put the undo file beside it.",
            )
        if not self._path.parent.is_dir():
            raise OperationError(f"The folder {quoted(self._path.parent)} is not there.", hint="Make it first.")
        if self._path.is_dir() or (os.path.lexists(self._path) and not self._is_overwriting):
            raise OperationError(
                f"{quoted(self._path)} exists already.", hint="Choose another name, or pass --overwrite."
            )


def written(execution: Execution, writer: UndoWriter | None, staged: StagedFolder) -> Outcome:
    """Write the files, and the undo file where `writer` is there for one."""
    with writer or nullcontext():
        execution.write(staged)
        return Outcome(execution, (writer.finish(staged.finished),) if writer else ())


def _is_plain(part: Part) -> bool:
    """Whether a part adds to a weight what does not depend on it."""
    return part.saved is None and (part.delta is None or part.delta.magnitude is None)


def _is_of_base(step: Step) -> bool:
    """Whether a tensor is changed that the base has under this name."""
    return step.kind is StepKind.UPDATE and step.source is not None and step.name == step.source.name
