"""The bytes that a push sends: read, looked through, rewritten where they tell of this machine, hashed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.report import Finding
from lora_lab.domain.sharing import Origin, Outgoing, git_sha1
from lora_lab.errors import FileFormatError, quoted
from lora_lab.operations import push_receipt
from lora_lab.operations.push_files import CARD
from lora_lab.operations.push_privacy import (
    as_json,
    cleaned_configuration,
    local_path_in,
    require_no_path,
    require_no_token,
)
from lora_lab.operations.receipt import RECEIPT
from lora_lab.operations.receipt_file import read_receipt
from lora_lab.storage.files import opened, read_at, read_json, require_unchanged, stamp, stamp_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_lab.domain.progress import Observer
    from lora_lab.domain.tensors import FileStamp
    from lora_lab.operations.push_files import Chosen
    from lora_lab.operations.push_hashing import Hashes

_SMALL_BYTES: Final = 64 << 20
_CONFIGURATIONS: Final = frozenset({"adapter_config.json", "config.json", "generation_config.json"})
_TOLD: Final = frozenset({"tokenizer_config.json"})  # loaded-from fields alone; it is full of texts with slashes
_TEXTS: Final = (".json", ".md", ".txt", ".jinja")
_RECEIPT_BYTES: Final = 256 << 20


@dataclass(frozen=True)
class Contents:
    """What is sent but for the card, and what was found on the way."""

    files: tuple[Outgoing, ...]
    receipt: Mapping[str, Any] | None  # as it lies in the folder
    published_receipt: Mapping[str, Any] | None
    findings: tuple[Finding, ...]


def contents_of(
    chosen: Sequence[Chosen],
    *,
    replaced: Mapping[str, str],
    hashes: Hashes,
    observer: Observer,
) -> Contents:
    """Read and hash what was chosen; the card is left to the caller.

    Parameters
    ----------
    replaced : what stands in adapter_config.json instead, by field
    hashes : of large files
    observer : told of bytes that are hashed, and asked whether to go on

    Raises
    ------
    UnsafeFileError
        a text holds an access token or a path of this machine.
    FileFormatError
        JSON that is none, a receipt that is none, or a file that changed meanwhile.
    """
    findings: list[Finding] = []
    large = [one for one in chosen if one.name.endswith(".safetensors") or one.size_bytes > _SMALL_BYTES]
    files = _large(large, hashes, observer)
    raw_receipt: Any = None
    for one in chosen:
        if one.name == CARD or one in large:
            continue
        if one.name == RECEIPT:
            read_receipt(one.path)
            raw_receipt = read_json(one.path, limit_bytes=_RECEIPT_BYTES)
            continue
        before = stamp(one.path)
        content = read_small(one.path)
        if _is_text(one.name):
            text = _decoded(one, content)
            require_no_token(one.name, text)
            rewritten, fields = _looked_through(one, text, replaced)
            if fields:
                findings.append(_rewritten(one.name, fields, replaced))
                files.append(small(one.name, rewritten, Origin.REWRITTEN))
                continue
        files.append(_as_it_lies(one, before, content))
    receipt = None
    if raw_receipt is not None:
        changed = {file.name: file for file in files if file.origin is Origin.REWRITTEN}
        findings += _disagreements(raw_receipt, files)
        receipt = push_receipt.published(raw_receipt, changed)
        content = as_json(receipt)
        require_no_token(RECEIPT, content.decode())
        files.append(small(RECEIPT, content, Origin.REWRITTEN if receipt != raw_receipt else Origin.FOLDER))
    return Contents(tuple(files), raw_receipt, receipt, tuple(findings))


def small(name: str, content: bytes, origin: Origin) -> Outgoing:
    """A file that is sent from memory."""
    digest = hashlib.sha256(content).hexdigest()
    return Outgoing(name, len(content), digest, origin, content=content, git_sha1=git_sha1(content))


def _as_it_lies(one: Chosen, before: FileStamp, content: bytes) -> Outgoing:
    digest, git = hashlib.sha256(content).hexdigest(), git_sha1(content)
    return Outgoing(one.name, len(content), digest, path=str(one.path.absolute()), stamp=before, git_sha1=git)


def read_small(path: Path) -> bytes:
    """The bytes of a small file, the same before and after."""
    with opened(path) as descriptor:
        before = stamp_of(descriptor, path)
        content = read_at(descriptor, path, 0, _SMALL_BYTES + 1)
        require_unchanged(before, stamp_of(descriptor, path))
    return content


def metadata_findings(metadata: Mapping[str, str]) -> list[Finding]:
    """What the header of the weights tells of this machine; it is part of their bytes, which stay as they are.

    Raises
    ------
    UnsafeFileError
        it holds an access token.
    """
    for key, value in metadata.items():
        require_no_token("the weights' metadata", f"{key} {value}")
    telling = sorted(key for key, value in metadata.items() if local_path_in(value) is not None)
    if not telling:
        return []
    named = ", ".join(quoted(key) for key in telling[:3])
    return [Finding("path_in_metadata", f"The header of the weights names paths of this machine, in {named}.")]


def _is_text(name: str) -> bool:
    return name.endswith(_TEXTS) or "." not in name


def _large(large: Sequence[Chosen], hashes: Hashes, observer: Observer) -> list[Outgoing]:
    """Files that are sent as they lie, each the same before and after it was hashed."""
    before = [stamp(one.path) for one in large]
    digests = hashes.of([(one.path, one.size_bytes) for one in large], observer)
    files = []
    for one, was, digest in zip(large, before, digests, strict=True):
        require_unchanged(was, stamp(one.path))
        files.append(Outgoing(one.name, was.size_bytes, digest, path=str(one.path.absolute()), stamp=was))
    return files


def _decoded(one: Chosen, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FileFormatError(
            f"{quoted(one.name)} is no UTF-8 text, expected what its name says.", hint="Save it as UTF-8."
        ) from None


def _looked_through(one: Chosen, text: str, replaced: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """A configuration as it is sent, and the fields that are not as they lie there."""
    if one.name not in _CONFIGURATIONS | _TOLD:
        return b"", []
    document = read_json(one.path, limit_bytes=_SMALL_BYTES)
    wanted = replaced if one.name == "adapter_config.json" else {}
    cleaned, fields = cleaned_configuration(document, wanted)
    content = as_json(cleaned)
    if one.name in _CONFIGURATIONS:
        require_no_path(one.name, content.decode() if fields else text)
    return content, fields


def _rewritten(name: str, fields: Sequence[str], replaced: Mapping[str, str]) -> Finding:
    said = [
        f"{quoted(field)} is sent as {quoted(replaced[field])}" if field in replaced else f"{quoted(field)} is left out"
        for field in dict.fromkeys(fields)
    ]
    return Finding("rewritten", f"In {quoted(name)}, {' and '.join(said)}; the file on this machine stays as it is.")


def _disagreements(receipt: Mapping[str, Any], files: Sequence[Outgoing]) -> list[Finding]:
    """Files that were changed after the receipt was written."""
    told = {entry["path"]: entry["sha256"] for entry in receipt["outputs"]}
    unchanged = {file.name: file for file in files if file.origin is Origin.FOLDER}
    wrong = sorted(name for name in told.keys() & unchanged.keys() if told[name] != unchanged[name].sha256)
    if not wrong:
        return []
    named = ", ".join(quoted(name) for name in wrong[:3])
    return [
        Finding("receipt_disagrees", f"The receipt tells of other bytes than {named} has: it was changed afterwards.")
    ]
