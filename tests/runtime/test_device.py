import pytest
import torch

from vqtool.errors import ConfigError
from vqtool.runtime.device import resolve_device


def having(monkeypatch: pytest.MonkeyPatch, cuda: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)


@pytest.mark.parametrize(("cuda", "expected"), [(1, "cuda"), (0, "cpu")])
def test_auto_takes_the_fastest_there_is(monkeypatch: pytest.MonkeyPatch, cuda: int, expected: str) -> None:
    having(monkeypatch, cuda)
    assert resolve_device("auto") == torch.device(expected)


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_a_device_that_is_there_can_be_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    having(monkeypatch, cuda=2)
    assert resolve_device(name) == torch.device(name)


@pytest.mark.parametrize(("name", "cuda"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2), ("cuda:127", 2)])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, cuda: int) -> None:
    having(monkeypatch, cuda)
    there = "cuda, cpu" if cuda else "cpu"
    with pytest.raises(ConfigError, match=rf"device: {name} is not available on this machine \(available: {there}\); "):
        resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "CPU0", "meta", "cuda:01", "cuda:128", "cuda:-1"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf'^--device: expected auto, cpu, cuda .* cuda:1 \(got "{name}"\)$'):
        resolve_device(name, "--device")


def test_mps_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"^training\.device: mps .* float64"):
        resolve_device("mps")


def test_each_process_of_a_job_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, cuda=4)
    for name, value in {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:2")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
