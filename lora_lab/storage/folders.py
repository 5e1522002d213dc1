"""Where lora-lab keeps files of its own: what may be forgotten, and what may not."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_data_path


def cache_folder() -> Path:
    """``LORA_LAB_CACHE_DIR`` where it is set, else the user's own cache folder for lora-lab."""
    chosen = os.environ.get("LORA_LAB_CACHE_DIR")
    return Path(chosen) if chosen else user_cache_path("lora-lab")


def data_folder() -> Path:
    """``LORA_LAB_DATA_DIR`` where it is set, else the user's own data folder for lora-lab."""
    chosen = os.environ.get("LORA_LAB_DATA_DIR")
    return Path(chosen) if chosen else user_data_path("lora-lab")
