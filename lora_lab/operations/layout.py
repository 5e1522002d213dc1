"""The files of an output: weights in the base's own division, everything else as it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.plan import CopiedFile, Plan, PlannedFile, Step, StepKind
from lora_lab.domain.report import Finding
from lora_lab.errors import FileFormatError, quoted
from lora_lab.operations.planning import OUTPUT_LAYER
from lora_lab.storage.files import inside, opened, read_at, read_json
from lora_lab.storage.header import parsed_header, read_header
from lora_lab.storage.layout import Entry, header_bytes, in_aligned_order
from lora_lab.storage.strict_json import JsonRefusedError, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_lab.domain.base import Base
    from lora_lab.domain.dtypes import DType
    from lora_lab.domain.tensors import FileStamp
    from lora_lab.operations.planning import Changes

_INDEX: Final = ".safetensors.index.json"
_CONFIGURATION: Final = "config.json"
_MOST_VALUES: Final = 2_000_000
# Other forms of the same weights: they would say something else than the output.
_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz", ".ot")
_OWN: Final = ("lora_lab_receipt.json",)
_NAMES: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def steps_of(changes: Changes, base: Base, dtype: DType | None) -> dict[str, Step]:
    """What becomes of every tensor, by name."""
    steps = {}
    for name, ref in (*base.tensors.items(), *changes.untied.items()):
        to = dtype if dtype is not None and ref.dtype.value in _NAMES else ref.dtype
        parts = tuple(changes.parts.get(name, ()))
        kind = StepKind.UPDATE if parts else StepKind.COPY if to is ref.dtype else StepKind.CAST
        steps[name] = Step(name, kind, to, ref.shape, ref, parts)
    for name, part in changes.added.items():
        assert part.saved is not None
        ref = part.saved.tensor
        to = dtype if dtype is not None and ref.dtype.value in _NAMES else ref.dtype
        steps[name] = Step(name, StepKind.ADD, to, ref.shape, None, (part,))
    return steps


def weight_files(
    steps: Mapping[str, Step], base: Base, headers: Mapping[str, bytes] | None = None
) -> tuple[PlannedFile, ...]:
    """Files of weights, divided as the base's; what is added goes to the last.

    A file whose tensors keep their names, types and shapes keeps the very bytes of its header.

    Parameters
    ----------
    headers : by path, where the base's files are not there to be read, the length in front of each
    """
    files = []
    added = [step for step in steps.values() if step.source is None]
    for shard in base.shards:
        own = [step for step in steps.values() if step.source is not None and step.source.file == shard]
        own.sort(key=lambda step: step.source.begin_bytes if step.source else 0)
        extra = added if shard is base.shards[-1] else []
        files.append(_weight_file(shard, own, extra, None if headers is None else headers[shard.path]))
    return tuple(files)


def header_of(path: str) -> bytes:
    """The header of a safetensors file, its length in front."""
    with opened(path) as descriptor:
        length = int.from_bytes(read_at(descriptor, path, 0, 8), "little")
        return read_at(descriptor, path, 0, 8 + length)


def _weight_file(
    shard: FileStamp, own: Sequence[Step], extra: Sequence[Step], header: bytes | None = None
) -> PlannedFile:
    name = Path(shard.path).name
    if not extra and all(_is_like_source(step) for step in own):
        whole = header or header_of(shard.path)
        if len(whole) + sum(step.source.size_bytes for step in own if step.source) == shard.size_bytes:
            return PlannedFile(name, tuple(own), whole, shard.size_bytes)
    by_name = {step.name: step for step in (*own, *extra)}
    entries = in_aligned_order(Entry(step.name, step.dtype, step.shape) for step in by_name.values())
    metadata = read_header(shard.path).metadata if header is None else parsed_header(header[8:], shard).metadata
    header = header_bytes(entries, metadata)
    size = len(header) + sum(entry.size_bytes for entry in entries)
    return PlannedFile(name, tuple(by_name[entry.name] for entry in entries), header, size)


def _is_like_source(step: Step) -> bool:
    return step.source is not None and (step.name, step.dtype) == (step.source.name, step.source.dtype)


def other_files(
    base: Base, plan_files: Sequence[PlannedFile], originals: Mapping[str, bytes] | None = None
) -> tuple[tuple[CopiedFile, ...], dict[str, bytes], list[Finding]]:
    """Files that go along, documents that are written anew, and what is left behind.

    Parameters
    ----------
    originals : documents of the base, where what is in its folder is something else
    """
    root = Path(base.path)
    if not root.is_dir():
        return (), {}, []
    copies = []
    left = []
    for path in _regular_files(root):
        name = path.relative_to(root).as_posix()
        if name in _OWN or name in {file.name for file in plan_files}:
            continue
        if name.endswith(_INDEX):
            if name.rpartition("/")[0] or len(plan_files) == 1:
                left.append(name)
            continue
        if path.name.endswith(_WEIGHTS):
            left.append(name)
            continue
        source = inside(root, name)
        copies.append(CopiedFile(name, str(source), source.stat().st_size))
    documents = _documents(base, root, plan_files, originals or {})
    kept = tuple(file for file in copies if file.name not in documents)
    return kept, documents, _left(left)


def _left(names: Sequence[str]) -> list[Finding]:
    if not names:
        return []
    shown = ", ".join(quoted(name) for name in names[:3]) + (" …" if len(names) > 3 else "")
    return [
        Finding(
            "weights_left_behind",
            f"{len(names)} files hold the base's weights in another form and are not copied: {shown}.",
        )
    ]


def _regular_files(root: Path) -> list[Path]:
    """Files below `root` in a fixed order; hidden ones and what is below hidden folders are passed over."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
    return [path for path in found if path.is_file()]


def _documents(
    base: Base, root: Path, files: Sequence[PlannedFile], originals: Mapping[str, bytes]
) -> dict[str, bytes]:
    """The index and the configuration, where they would otherwise say something else than the weights."""
    documents = dict(originals)
    index = min((*(path.name for path in root.glob(f"*{_INDEX}")), *_ending(originals, _INDEX)), default=None)
    if index is not None and len(files) > 1:
        documents[index] = _index(originals.get(index) or (root / index).read_bytes(), root / index, files)
    configuration = root / _CONFIGURATION
    if configuration.is_file():
        before = _read(originals.get(_CONFIGURATION), configuration)
        after = _configured(dict(before), base, files)
        if after != before:
            documents[_CONFIGURATION] = _json(after)
    return documents


def _ending(names: Iterable[str], end: str) -> list[str]:
    return [name for name in names if name.endswith(end)]


def _read(raw: bytes | None, path: Path, limit_bytes: int = 1 << 20) -> Any:
    """The JSON of `raw`, or of the file at `path`."""
    if raw is None:
        return read_json(path, limit_bytes=limit_bytes)
    try:
        return parse_json(raw, most_values=_MOST_VALUES)
    except JsonRefusedError as error:
        raise FileFormatError(f"What was kept of {quoted(path)} {error}.") from None


def _configured(document: dict[str, Any], base: Base, files: Sequence[PlannedFile]) -> dict[str, Any]:
    """The configuration with the type that all weights now have, and without a tie that was cut."""
    dtypes = {step.dtype for file in files for step in file.steps if step.dtype.value in _NAMES}
    before = {ref.dtype for ref in base.tensors.values() if ref.dtype.value in _NAMES}
    if dtypes != before and len(dtypes) == 1:
        said = _NAMES[next(iter(dtypes)).value]
        document.update({key: said for key in ("dtype", "torch_dtype") if key in document})
    if any(_is_parted(step) for file in files for step in file.steps):
        document["tie_word_embeddings"] = False
        if isinstance(document.get("text_config"), dict):
            document["text_config"] = {**document["text_config"], "tie_word_embeddings": False}
    return document


def _is_parted(step: Step) -> bool:
    """Whether a tensor was shared before, or is an output layer where there was none: a tie would hide it."""
    return step.name == OUTPUT_LAYER if step.source is None else step.name != step.source.name


def _index(raw: bytes, path: Path, files: Sequence[PlannedFile]) -> bytes:
    """The base's index with every tensor where it is now; its own bytes when nothing moved."""
    document = dict(_read(raw, path))
    weight_map = {step.name: file.name for file in files for step in file.steps}
    metadata = dict(document.get("metadata") or {})
    total = sum(file.size_bytes - len(file.header) for file in files)
    if document.get("weight_map") == weight_map and metadata.get("total_size", total) == total:
        return raw
    if "total_size" in metadata:
        metadata["total_size"] = total
    return _json({**document, "metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def plan_of(
    operation: str,
    base: Base,
    changes: Changes,
    *,
    dtype: DType | None,
    arguments: Mapping[str, Any],
    inputs: Sequence[FileStamp],
) -> Plan:
    """Put the plan together."""
    files = weight_files(steps_of(changes, base, dtype), base)
    copies, documents, findings = other_files(base, files)
    return Plan(operation, files, copies, documents, (*changes.findings, *findings), arguments, tuple(inputs))
