"""Devices: names and what they resolve to on this machine."""

import pytest
import torch

from vqtool.errors import ConfigError
from vqtool.runtime.device import resolve_device


def set_gpu_count(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(("gpus", "expected"), [(1, "cuda"), (0, "cpu")])
def test_auto_is_cuda_if_available_else_cpu(monkeypatch: pytest.MonkeyPatch, gpus: int, expected: str) -> None:
    set_gpu_count(monkeypatch, gpus)
    assert resolve_device("auto") == torch.device(expected)


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_available_devices_resolve(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    set_gpu_count(monkeypatch, gpus=2)
    assert resolve_device(name) == torch.device(name)


@pytest.mark.parametrize(("name", "gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2), ("cuda:127", 2)])
def test_unavailable_device_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int) -> None:
    set_gpu_count(monkeypatch, gpus)
    available = "cuda, cpu" if gpus else "cpu"
    with pytest.raises(ConfigError, match=rf"training\.device: {name} .* \(available: {available}\); .*--device"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "CPU0", "meta", "cuda:01", "cuda:128", "cuda:-1"])
def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf'^--device: .*auto, cpu, cuda\b.*"{name}"'):
        resolve_device(name, "--device")


def test_mps_is_refused_because_it_has_no_float64() -> None:
    with pytest.raises(ConfigError, match=r"^training\.device: mps .* float64"):
        resolve_device("mps")


def test_auto_and_cuda_are_the_gpu_of_the_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    set_gpu_count(monkeypatch, gpus=4)
    for name, value in {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:2")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
