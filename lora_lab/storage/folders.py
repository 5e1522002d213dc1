"""Where converted files are kept."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """``LORA_LAB_CACHE_DIR`` where it is set, else the user's own cache folder for lora-lab."""
    chosen = os.environ.get("LORA_LAB_CACHE_DIR")
    return Path(chosen) if chosen else user_cache_path("lora-lab")
