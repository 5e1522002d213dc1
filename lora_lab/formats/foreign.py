"""Formats known by name: recognised, and refused with that name until a plugin reads them; never guessed at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.errors import AdapterError, UnsupportedFormatError, quoted
from lora_lab.extension.contracts import Recognition
from lora_lab.formats import glance
from lora_lab.formats.recognition import PEFT, identify_names, is_mlx_configuration
from lora_lab.storage.files import FileKind

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.domain.adapter import Adapter
    from lora_lab.extension.contracts import ReadOptions

TITLES: Final = {
    "cloneofsimo": "cloneofsimo",
    "control_lora": "ControlLoRA",
    "diffusers": "diffusers",
    "flux_control": "FLUX control LoRA",
    "gguf": "GGUF",
    "kohya": "kohya",
    "loha": "LyCORIS LoHa",
    "lokr": "LyCORIS LoKr",
    "loralib": "loralib",
    "lycoris": "LyCORIS",
    "mlx": "MLX",
    "sam_lora": "SAM-LoRA",
    "torchtune": "torchtune",
    "xlabs": "XLabs FLUX",
}


class KnownByName:
    """Every format that has a name here and no reader."""

    id = "known-by-name"
    title = "Formats known by name"

    def recognise(self, path: Path) -> Recognition:
        """Named when the configuration, a file's magic or its tensor names belong to a known format."""
        return Recognition.NAMED if identify(path) in TITLES else Recognition.NO

    def read(self, path: Path, options: ReadOptions) -> Adapter:
        """Say what it is.

        Raises
        ------
        UnsupportedFormatError
            always, with the name of the format.
        """
        del options
        found = identify(path)
        if found not in TITLES:
            raise AdapterError(f"{quoted(path)} holds no adapter of a known format.")
        raise UnsupportedFormatError(
            f"{quoted(path)} is an adapter of the format {TITLES[found]}: not readable yet, expected PEFT's "
            f"{glance.CONFIG} and {glance.WEIGHTS}.",
            hint="lora-lab plugins lists the formats that are installed.",
        )


def identify(path: Path) -> str:
    """Id of the format of a folder's first telling file, or of a file; empty when nothing tells."""
    if not path.is_dir():
        return _identify_file(path)
    start = glance.configuration_start(path)
    if start is not None and is_mlx_configuration(start):
        return "mlx"
    if any(glance.exists(path, name) for name in glance.PEFT_FILES):
        return PEFT
    return next((found for file in glance.loose_files(path) if (found := _identify_file(file))), "")


def _identify_file(path: Path) -> str:
    kind = glance.kind(path)
    if kind is FileKind.GGUF:
        return "gguf"
    if path.suffix == ".npz":
        return identify_names(_npz_names(path), {})
    return identify_names(*glance.header_names(path)) if path.suffix == ".safetensors" else ""


def _npz_names(path: Path) -> list[str]:
    """Names of the arrays of an npz archive, from its directory alone."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return []
