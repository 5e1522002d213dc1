"""Methods on entries, all the way: files in, a file out that PEFT loads, and the error told is the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.utils import merge_utils
from transformers import AutoModelForCausalLM

from lora_lab import Session

ADAPTERS = ("banking77-r8-seed0", "banking77-rslora", "snips-r8")
STRENGTHS = [1.0, 0.5, -0.25]
MODULES = ["*.layers.0.self_attn.*_proj"]
METHODS: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.3},
    "dare_ties": {},
    "della": {},
    "breadcrumbs": {},
    "multislerp": {},
}


@pytest.fixture(scope="module")
def base(samples: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(samples / "base", dtype=torch.float32)


def updates(base: Any, folder: Path) -> dict[str, torch.Tensor]:
    """ΔW of every module, by PEFT itself."""
    model = PeftModel.from_pretrained(base, str(folder))
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if "layers.0.self_attn" in name and hasattr(layer, "get_delta_weight"):
            found[name] = layer.get_delta_weight("default").detach().clone()
    model.unload()
    return found


@pytest.fixture(scope="module")
def parts(base: Any, samples: Path) -> list[dict[str, torch.Tensor]]:
    return [updates(base, samples / name) for name in ADAPTERS]


@pytest.mark.parametrize("method", METHODS)
def test_peft_loads_what_was_computed(method: str, base: Any, samples: Path, tmp_path: Path) -> None:
    """The seed decides, the order does not, and what PEFT makes of the file has the norms that the receipt tells of."""
    places = [str(samples / name) for name in ADAPTERS]
    how: dict[str, Any] = {"method": method, "rank": 6, "modules": MODULES, "settings": METHODS[method]}
    report = Session(seed=1).combine(places, strengths=STRENGTHS, output=tmp_path / "out", **how)
    Session(seed=1).combine(places[::-1], strengths=STRENGTHS[::-1], output=tmp_path / "turned", **how)
    rows = {row["module"]: row for row in report.table("modules").rows}
    found = updates(base, tmp_path / "out")
    assert found.keys() == rows.keys()
    turned = updates(base, tmp_path / "turned")
    for module, delta in found.items():
        norm, kept = rows[module]["norm"], float(torch.linalg.vector_norm(delta))
        assert rows[module]["rank"] == 6
        # What is kept of D is at right angles to what is lost.
        assert kept**2 + (rows[module]["relative_error"] * norm) ** 2 == pytest.approx(norm**2, rel=1e-4)
        torch.testing.assert_close(turned[module], delta, rtol=1e-5, atol=1e-5 * kept)


@pytest.mark.parametrize("method", ["ties", "magnitude_prune"])
def test_against_peft_on_dense_matrices(method: str, base: Any, parts: Any, samples: Path, tmp_path: Path) -> None:
    """Its own functions on its own ΔW, cut by an exact SVD: within a hundredth of the error that this leaves."""
    Session().combine(
        [str(samples / name) for name in ADAPTERS],
        strengths=STRENGTHS,
        method=method,
        settings={"density": 0.3},
        rank=6,
        modules=MODULES,
        output=tmp_path / "out",
    )
    for module, delta in updates(base, tmp_path / "out").items():
        there = [(part[module], weight) for part, weight in zip(parts, STRENGTHS, strict=True) if module in part]
        dense = getattr(merge_utils, method)([one for one, _ in there], torch.tensor([one for _, one in there]), 0.3)
        optimum = np.linalg.norm(np.linalg.svd(dense.double().numpy(), compute_uv=False)[6:])
        assert float(torch.linalg.vector_norm(dense - delta)) == pytest.approx(optimum, rel=0.01)
