"""A run that is stopped or killed at any point and resumed equals an uninterrupted run; all of its state is needed."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import (
    IDENTITY,
    raise_before_step,
    read_checkpoint,
    reproducible_log,
    tiny_settings,
)
from vqtool.config import RunSettings
from vqtool.data import BatchOrder
from vqtool.errors import DataError, Stopped
from vqtool.models.autoencoder import Autoencoder
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train, trainer
from vqtool.training.optimizer import Optimizer

Mutate = Callable[[pytest.MonkeyPatch], None]


def settings_in(folder: Path, **training: Any) -> RunSettings:
    """Return the settings of a run of 8 steps over three epochs, with every kind of state."""
    settings = tiny_settings(folder, loss={"entropy": 0.1}, update={"kind": "ema", "decay": 0.9}, **training)
    # The window of hits has three steps, so the checkpoint of step 3 is in the middle of a window.
    return with_quantizer(
        settings, temperature_unit="quantization_error", dead_code_reset={"window_hits": 6, "min_hits": 5}
    )


def with_quantizer(settings: RunSettings, **changes: Any) -> RunSettings:
    quantizer = {**settings.model.quantizer.model_dump(), **changes}
    model = {**settings.model.model_dump(), "quantizer": quantizer}
    return RunSettings.model_validate({**settings.model_dump(), "model": model})


def outcome(folder: Path, steps: int = 8) -> dict[str, Any]:
    """Return the result of a run without what depends on the clock."""
    last = read_checkpoint(folder, steps)
    del last["seconds"]
    return {"model": RunDirectory(folder).model.read_bytes(), "last": last, "log": reproducible_log(folder)}


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


# Stopped by a signal


class SignalAtCheck:
    """Replaces the vote of all ranks on a signal in `raise_if_stopped`: SIGTERM after the first `checks` checks."""

    def __init__(self, checks: int) -> None:
        self.remaining = checks

    def __call__(self, number: int) -> int:
        assert number == 0
        self.remaining -= 1
        return signal.SIGTERM if self.remaining < 0 else 0


@pytest.mark.parametrize("quantizer", ["vector", "product", "residual"])
def test_resume_after_a_signal_at_any_check_gives_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: str
) -> None:
    settings = tiny_settings(tmp_path, loss={"entropy": 0.1}, steps=5, validate_every=2)
    inner = settings.model.quantizer.model_dump() | {"codebook_dim": 4, "temperature_unit": "quantization_error"}
    sizes = {"product": {"groups": 2}, "residual": {"levels": 2}}
    block = {"kind": quantizer, **sizes[quantizer], "quantizer": inner} if quantizer in sizes else inner
    model = {**settings.model.model_dump(), "quantizer": block}
    settings = RunSettings.model_validate({**settings.model_dump(), "model": model})
    train(settings, tmp_path / "uninterrupted")
    no_signal = SignalAtCheck(10**9)
    with monkeypatch.context() as patch:
        patch.setattr("vqtool.runtime.signals.any_rank", no_signal)
        train(settings, tmp_path / "counted")  # the data are already scanned
    total = 10**9 - no_signal.remaining
    assert total > 20
    for checks in range(0, total, total // 12):
        folder = tmp_path / str(checks)
        with monkeypatch.context() as patch:
            patch.setattr("vqtool.runtime.signals.any_rank", SignalAtCheck(checks))
            with pytest.raises(Stopped, match="SIGTERM"):
                train(settings, folder)
        train(settings, folder, resume=True)
        assert equal(outcome(folder, 5), outcome(tmp_path / "uninterrupted", 5)), checks


def test_signal_before_training_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.runtime.signals.any_rank", SignalAtCheck(0))
    with pytest.raises(Stopped, match=r"SIGTERM .*no checkpoint"):
        train(tiny_settings(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Killed


class Killed(BaseException):
    """Raised where a process would be killed; nothing handles it."""


def kill_and_resume(settings: RunSettings, folder: Path, at: int, mutate: Mutate | None = None) -> None:
    """Train up to a step, fail without saving, and resume from the last checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        raise_before_step(patch, at + 1, Killed)
        with pytest.raises(Killed):
            train(settings, folder)
    with pytest.MonkeyPatch.context() as patch:
        if mutate:
            mutate(patch)
        train(settings, folder, resume=True)


@pytest.mark.parametrize("at", range(1, 8))
def test_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, at: int) -> None:
    settings = settings_in(tmp_path)
    train(settings, tmp_path / "uninterrupted")
    kill_and_resume(settings, tmp_path / "run", at)
    assert equal(outcome(tmp_path / "run"), outcome(tmp_path / "uninterrupted"))


def _skip_buffers(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Keep the initial values of these buffers of the quantizer when a checkpoint is loaded."""
    load = Autoencoder.load_state_dict

    def load_without_buffers(model: Autoencoder, state: dict[str, Any]) -> Any:
        initial = model.state_dict()
        return load(model, {**state, **{f"quantizer.{name}": initial[f"quantizer.{name}"] for name in names}})

    patch.setattr(Autoencoder, "load_state_dict", load_without_buffers)


def _skip_optimizer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Optimizer, "load_state_dict", lambda self, state: None)


def _restart_schedule(patch: pytest.MonkeyPatch) -> None:
    step = Optimizer.step
    patch.setattr(Optimizer, "step", lambda self, number, step_is_finite=None: step(self, number - 3, step_is_finite))


def _restart_batch_order(patch: pytest.MonkeyPatch) -> None:
    batch = BatchOrder.batch
    patch.setattr(BatchOrder, "batch", lambda self, step: batch(self, step - 3))


def _change_order_seed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trainer, "BatchOrder", lambda samples, batch_size, seed: BatchOrder(samples, batch_size, seed + 1))


MUTANTS: dict[str, Mutate] = {
    "optimizer": _skip_optimizer,
    "schedule": _restart_schedule,
    "position in the data": _restart_batch_order,
    "seed of the batch order": _change_order_seed,
    "EMA counts": lambda patch: _skip_buffers(patch, "codebook.counts"),
    "EMA sums": lambda patch: _skip_buffers(patch, "codebook.sums"),
    "hits of the dead-code reset": lambda patch: _skip_buffers(patch, "dead_code_reset.hits"),
    "error scale": lambda patch: _skip_buffers(patch, "error_scale.error", "error_scale.weight"),
    "whether codes are initialised": lambda patch: _skip_buffers(patch, "initializer.done"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_result_differs_if_any_state_is_not_restored(tmp_path: Path, mutant: str) -> None:
    settings = settings_in(tmp_path)
    train(settings, tmp_path / "uninterrupted")
    kill_and_resume(settings, tmp_path / "run", 5, MUTANTS[mutant])
    assert not equal(outcome(tmp_path / "run"), outcome(tmp_path / "uninterrupted"))


def test_result_differs_if_the_k_means_sample_is_not_restored(tmp_path: Path) -> None:
    # The sample of 80 latents is complete after five of 80 steps; an incomplete one would be used after eight.
    settings = tiny_settings(tmp_path, encoder=IDENTITY, steps=80, validate_every=80, checkpoint_every=3)
    settings = with_quantizer(settings, init={"kind": "kmeans", "latents_per_code": 10})
    train(settings, tmp_path / "uninterrupted")
    kill_and_resume(settings, tmp_path / "run", 4)
    assert equal(outcome(tmp_path / "run", 80), outcome(tmp_path / "uninterrupted", 80))
    kill_and_resume(settings, tmp_path / "mutant", 4, lambda patch: _skip_buffers(patch, "initializer.sample"))
    assert not equal(outcome(tmp_path / "mutant", 80), outcome(tmp_path / "uninterrupted", 80))


# The best model


def test_best_model_is_written_again_after_steps_are_lost(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, validate_every=2, checkpoint_every=5)
    train(settings, tmp_path / "uninterrupted")
    kill_and_resume(settings, tmp_path / "run", 5)
    assert equal(outcome(tmp_path / "run"), outcome(tmp_path / "uninterrupted"))


def test_damaged_best_model_is_reported_and_replaced(tmp_path: Path) -> None:
    settings, lines = settings_in(tmp_path), []
    train(settings, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    content = bytearray(run.model.read_bytes())
    content[-3] ^= 1
    run.model.write_bytes(content)
    run.summary.unlink()
    longer = settings_in(tmp_path, steps=9)
    summary = train(longer, tmp_path / "run", resume=True, log=lines.append)
    assert any("model.safetensors: damaged" in line for line in lines)
    assert read_model(run.model)[0].step == summary["best_step"] == 9


# The data


def test_changed_data_are_an_error_unless_allowed(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "raise_if_stopped", _stop_at(5))
        with pytest.raises(Stopped):
            train(settings, tmp_path / "run")
    content = bytearray((tmp_path / "data.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "data.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"/run: .*SHA-256 .*--allow-data-change"):
        train(settings, tmp_path / "run", resume=True)
    lines: list[str] = []
    train(settings, tmp_path / "run", resume=True, allow_data_change=True, log=lines.append)
    assert any("data changed" in line for line in lines)


def _stop_at(calls: int) -> Callable[[], None]:
    remaining = calls

    def raise_if_stopped() -> None:
        nonlocal remaining
        remaining -= 1
        if remaining < 0:
            raise Stopped(signal.SIGTERM, "stopped by SIGTERM")

    return raise_if_stopped
