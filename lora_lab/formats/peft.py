"""PEFT's LoRA: ``adapter_config.json`` and ``adapter_model.safetensors``, of every version that wrote them.

Source: PEFT 0.21, ``utils/save_and_load.py`` and ``tuners/lora``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.report import Finding
from lora_lab.errors import AdapterError, MissingFileError, UnsafeFileError, quoted
from lora_lab.extension.contracts import ReadOptions, Recognition
from lora_lab.formats import glance
from lora_lab.formats.glance import CONFIG, INDEX, PEFT_FILES, PICKLE, WEIGHTS
from lora_lab.formats.peft_config import Patterns, parse_config
from lora_lab.formats.peft_features import features, is_loose
from lora_lab.formats.peft_findings import findings_of
from lora_lab.formats.peft_keys import require_pairs, sort_keys
from lora_lab.formats.peft_layout import lay_out
from lora_lab.formats.peft_saved import require_extras, saved_tensors
from lora_lab.formats.recognition import PEFT, identify_names, is_mlx_configuration
from lora_lab.storage.files import inside, read_json, stamp
from lora_lab.storage.header import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_lab.domain.tensors import FileStamp, TensorRef
    from lora_lab.formats.peft_keys import Keys

_SAFETENSORS: Final = ".safetensors"


class PeftFormat:
    """Adapters in the layout of Hugging Face PEFT."""

    id = PEFT
    title = "PEFT"

    def recognise(self, path: Path) -> Recognition:
        """Say whether a folder holds PEFT's two files, or a file is one of them."""
        is_folder = path.is_dir()
        folder = path if is_folder else path.parent
        start = glance.configuration_start(folder)
        if start is not None and is_mlx_configuration(start):
            return Recognition.NO
        says_peft = start is not None and (b'"peft_type"' in start or not start)
        if is_folder:
            has_files = any(glance.exists(folder, name) for name in PEFT_FILES)
            return _readable(says_peft or has_files or (start is not None and not glance.loose_files(folder)))
        if path.name == CONFIG or path.name in PEFT_FILES:
            return _readable(True)
        if not path.name.endswith(_SAFETENSORS):
            return Recognition.NO
        # Some other name: the tensors tell.
        return _readable(identify_names(*glance.header_names(path)) == PEFT)

    def read(self, path: Path, options: ReadOptions) -> Adapter:
        """Read configuration and header; no weight.

        Raises
        ------
        AdapterError
            the two contradict themselves or each other; the sentence names file, module, got and expected.
        UnsupportedFormatError
            another method of PEFT than LoRA.
        FileFormatError, UnsafeFileError, MissingFileError
            a file is missing, broken, a pickle, or not a file.
        """
        folder, stored, told = _locate(path, options)
        config_path = _inside(folder, CONFIG, options)
        config = parse_config(read_json(config_path), config_path, alpha=options.alpha)
        weights = _converted(stored, options) if stored.suffix == ".bin" else stored
        tensors, metadata, stamps, findings = _tensors(weights, options)
        keys = sort_keys(tensors)
        _require_factors(stored, tensors, keys)
        loose = is_loose(config)
        if not loose:
            require_pairs(keys)
        patterns = Patterns(config)
        layout = lay_out(keys, config, patterns, is_loose=loose)
        saved, saved_findings = saved_tensors(config, keys)
        extras = () if loose else require_extras(config, keys, layout.deltas)
        found = (
            *told,
            *findings,
            *config.findings,
            *keys.findings,
            *layout.findings,
            *saved_findings,
            *extras,
            *findings_of(config, layout.deltas, patterns),
        )
        return Adapter(
            name=options.name or folder.resolve().name,
            locator=options.locator or str(path),
            path=str(path),
            format=self.id,
            deltas=layout.deltas,
            files=(stamp(config_path), *stamps),
            peft_type=str(config.document["peft_type"]),
            base_model=config.base_model,
            configuration=config.document,
            metadata=metadata,
            features=features(config, keys, layout.deltas, saved),
            saved=saved,
            findings=found,
        )


def _readable(is_readable: bool) -> Recognition:
    return Recognition.READABLE if is_readable else Recognition.NO


def _locate(path: Path, options: ReadOptions) -> tuple[Path, Path, list[Finding]]:
    """Folder, file with the tensors as it is stored, and what else was there."""
    is_folder = path.is_dir()
    folder = path if is_folder else path.parent
    if not glance.exists(folder, CONFIG):
        raise MissingFileError(
            f"{quoted(folder)} has no {CONFIG}, which says the alpha and the kind of a PEFT adapter.",
            hint="Fetch it from where the weights came from.",
        )
    if not is_folder and path.name != CONFIG:
        return folder, _inside(folder, path.name, options), []
    present = [name for name in PEFT_FILES if glance.exists(folder, name)]
    if not present:
        raise MissingFileError(
            f"{quoted(folder)} has {CONFIG} but no weights, expected {WEIGHTS} beside it.",
            hint="Fetch the weights too; a Git checkout may need `git lfs pull`.",
        )
    told = []
    if PICKLE in present and present != [PICKLE]:
        told.append(Finding("pickle_ignored", f"{present[0]} is used, the pickle {PICKLE} beside it is not."))
    return folder, _inside(folder, present[0], options), told


def _inside(folder: Path, name: str, options: ReadOptions) -> Path:
    return inside(folder, name, follow_symlinks=options.follow_symlinks)


def _converted(path: Path, options: ReadOptions) -> Path:
    """A safetensors file with the tensors of a pickle, if the user allowed it."""
    if not options.allow_pickle:
        raise UnsafeFileError(
            f"{quoted(path)} is a pickle, which can run code when it is loaded; expected {WEIGHTS}.",
            hint="Fetch the safetensors version, or pass --allow-pickle to convert it, weights only, in a process of "
            "its own.",
        )
    from lora_lab.storage.folders import cache_folder
    from lora_lab.storage.pickles import converted_pickle

    return converted_pickle(path, cache_dir=cache_folder() / "converted")


def _tensors(
    weights: Path, options: ReadOptions
) -> tuple[Mapping[str, TensorRef], Mapping[str, str], tuple[FileStamp, ...], tuple[Finding, ...]]:
    if weights.name.endswith(INDEX.removeprefix("adapter_model")):
        from lora_lab.storage.shards import read_checkpoint

        whole = read_checkpoint(weights, follow_symlinks=options.follow_symlinks)
        return whole.tensors, whole.metadata, whole.shards, whole.findings
    header = read_header(weights)
    return header.tensors, header.metadata, (header.stamp,), header.findings


def _require_factors(weights: Path, tensors: Mapping[str, TensorRef], keys: Keys) -> None:
    if not tensors:
        raise AdapterError(
            f"{quoted(weights)} contains no tensors, expected the factors of an adapter.",
            hint="It was saved without them; fetch or save it again.",
        )
    if not any(keys.parts.values()) and not keys.unknown:
        first = next(iter(tensors))
        raise AdapterError(
            f"{quoted(weights)} holds {len(tensors)} tensors such as {quoted(first)} and no LoRA factor, expected "
            "names with lora_A and lora_B."
        )
