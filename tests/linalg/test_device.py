"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from lora_lab.errors import LoraLabError
from lora_lab.linalg.device import has_float64, resolve_device


def test_auto_is_the_fastest_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda:0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"


def test_cuda_without_one_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LoraLabError) as caught:
        resolve_device("cuda")
    assert caught.value.message == "The device 'cuda' is not there: this torch finds no CUDA device."
    assert "--device cpu" in caught.value.hint


def test_cuda_is_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda") == "cuda:0"
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(LoraLabError, match="has 2"):
        resolve_device("cuda:2")


def test_mps_only_where_it_is(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == "mps"
    assert not has_float64("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(LoraLabError, match="Metal"):
        resolve_device("mps")


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "cuda:99999", "\x1b[31m"])
def test_other_names_are_refused(text):
    with pytest.raises(LoraLabError, match="expected auto, cpu, cuda, cuda:N or mps") as caught:
        resolve_device(text)
    assert "\x1b" not in caught.value.message
