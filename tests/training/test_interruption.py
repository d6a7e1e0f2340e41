"""Wherever a run is stopped or killed, it goes on to what it would have been; each piece of its state is needed."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import IDENTITY, checkpoint, die_in_step, logged, tiny, without_speed
from vqtool.config import RunSettings
from vqtool.data import BatchOrder, order
from vqtool.errors import DataError, Stopped
from vqtool.quantizers.dead_codes import DeadCodeReset
from vqtool.quantizers.ema_codebook import EmaCodebook
from vqtool.quantizers.error_scale import ErrorScale
from vqtool.quantizers.initialization import KMeansInit
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train, trainer
from vqtool.training.optimizer import Optimizer

Mutate = Callable[[pytest.MonkeyPatch], None]


def settings_in(folder: Path, **training: Any) -> RunSettings:
    """A run of eight steps over three epochs, with every kind of state there is."""
    settings = tiny(folder, loss={"entropy": 0.1}, learning={"kind": "ema", "decay": 0.9}, **training)
    # A window of three steps, of which the checkpoint of step 3 has seen two.
    return with_quantizer(
        settings, temperature_unit="quantization_error", dead_code_reset={"window_hits": 6, "min_hits": 5}
    )


def with_quantizer(settings: RunSettings, **changes: Any) -> RunSettings:
    quantizer = {**settings.model.quantizer.model_dump(), **changes}
    model = {**settings.model.model_dump(), "quantizer": quantizer}
    return RunSettings.model_validate({**settings.model_dump(), "model": model})


def outcome(folder: Path, steps: int = 8) -> dict[str, Any]:
    """All that a run comes to, but for what a clock says."""
    last = checkpoint(folder, steps)
    del last["seconds"]
    return {"model": RunDirectory(folder).model.read_bytes(), "last": last, "log": without_speed(logged(folder))}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


# Stopped by a signal


class _InTime(list[int]):
    """The signals that came: one, in time for the n-th time that anybody heeds."""

    def __init__(self, heeds: int) -> None:
        super().__init__([signal.SIGTERM])
        self.left = heeds

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("quantizer", ["vector", "product", "residual"])
def test_whenever_a_signal_is_heeded_the_run_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: str
) -> None:
    settings = tiny(tmp_path, loss={"entropy": 0.1}, steps=5, validate_every=2)
    inner = settings.model.quantizer.model_dump() | {"codebook_dim": 4, "temperature_unit": "quantization_error"}
    sizes = {"product": {"groups": 2}, "residual": {"levels": 2}}
    block = {"kind": quantizer, **sizes[quantizer], "quantizer": inner} if quantizer in sizes else inner
    model = {**settings.model.model_dump(), "quantizer": block}
    settings = RunSettings.model_validate({**settings.model_dump(), "model": model})
    train(settings, tmp_path / "straight")
    never = _InTime(10**9)
    monkeypatch.setattr("vqtool.runtime.signals._came", never)
    train(settings, tmp_path / "counted")  # the data are known by now
    total = 10**9 - never.left
    assert total > 20
    for heeds in range(0, total, total // 12):
        folder = tmp_path / str(heeds)
        monkeypatch.setattr("vqtool.runtime.signals._came", _InTime(heeds))
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            train(settings, folder)
        monkeypatch.setattr("vqtool.runtime.signals._came", [])
        train(settings, folder, resume=True)
        assert same(outcome(folder, 5), outcome(tmp_path / "straight", 5)), heeds


def test_a_signal_before_training_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.runtime.signals._came", _InTime(0))
    with pytest.raises(Stopped, match=r"stopped by SIGTERM before the first step; no checkpoint was saved$"):
        train(tiny(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Killed


class Killed(BaseException):
    """What ends a process without another word."""


def kill_and_resume(settings: RunSettings, folder: Path, at: int, mutate: Mutate | None = None) -> None:
    """Train up to a step, die without saving, and go on from the last checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        die_in_step(patch, at + 1, Killed)
        with pytest.raises(Killed):
            train(settings, folder)
    with pytest.MonkeyPatch.context() as patch:
        if mutate:
            mutate(patch)
        train(settings, folder, resume=True)


@pytest.mark.parametrize("at", range(1, 8))
def test_killed_and_resumed_is_as_never_killed(tmp_path: Path, at: int) -> None:
    settings = settings_in(tmp_path)
    train(settings, tmp_path / "straight")
    kill_and_resume(settings, tmp_path / "run", at)
    assert same(outcome(tmp_path / "run"), outcome(tmp_path / "straight"))


def _forget_buffers(patch: pytest.MonkeyPatch, kind: type[torch.nn.Module], names: list[str]) -> None:
    load = kind._load_from_state_dict

    def forgetful(self: Any, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = {f"{prefix}{name}": getattr(self, name) for name in names}
        load(self, {**state_dict, **own}, prefix, *args)

    patch.setattr(kind, "_load_from_state_dict", forgetful)


def _forget_optimizer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Optimizer, "load_state_dict", lambda self, state: None)


def _forget_schedule(patch: pytest.MonkeyPatch) -> None:
    step = Optimizer.step
    patch.setattr(Optimizer, "step", lambda self, number, good=None: step(self, number - 3, good))


def _forget_position(patch: pytest.MonkeyPatch) -> None:
    batch = BatchOrder.batch
    patch.setattr(BatchOrder, "batch", lambda self, step: batch(self, step - 3))


def _forget_generator(patch: pytest.MonkeyPatch) -> None:
    permutation = order._permutation
    patch.setattr(order, "_permutation", lambda samples, seed, epoch: permutation(samples, seed + 1, epoch))


MUTANTS: dict[str, Mutate] = {
    "optimizer": _forget_optimizer,
    "schedule": _forget_schedule,
    "position in the data": _forget_position,
    "generator of the order": _forget_generator,
    "EMA counts": lambda patch: _forget_buffers(patch, EmaCodebook, ["counts"]),
    "EMA sums": lambda patch: _forget_buffers(patch, EmaCodebook, ["sums"]),
    "hits that revival judges by": lambda patch: _forget_buffers(patch, DeadCodeReset, ["hits"]),
    "scale of the temperature": lambda patch: _forget_buffers(patch, ErrorScale, ["error", "weight"]),
    "that codes have started": lambda patch: _forget_buffers(patch, KMeansInit, ["done"]),
}


@pytest.mark.parametrize("forgotten", MUTANTS)
def test_each_piece_of_state_is_needed(tmp_path: Path, forgotten: str) -> None:
    settings = settings_in(tmp_path)
    train(settings, tmp_path / "straight")
    kill_and_resume(settings, tmp_path / "run", 5, MUTANTS[forgotten])
    assert not same(outcome(tmp_path / "run"), outcome(tmp_path / "straight"))


def test_the_sample_that_codes_wait_for_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "LONGEST_WAIT", 1.0)
    settings = tiny(tmp_path, encoder=IDENTITY, validate_every=8, checkpoint_every=3)
    settings = with_quantizer(settings, init={"kind": "kmeans", "latents_per_code": 10})
    train(settings, tmp_path / "straight")
    kill_and_resume(settings, tmp_path / "run", 4)
    assert same(outcome(tmp_path / "run"), outcome(tmp_path / "straight"))
    empty = torch.empty(0, 4)

    def forget(patch: pytest.MonkeyPatch) -> None:
        load = KMeansInit._load_from_state_dict
        patch.setattr(
            KMeansInit,
            "_load_from_state_dict",
            lambda self, state, prefix, *args: load(self, {**state, f"{prefix}sample": empty}, prefix, *args),
        )

    kill_and_resume(settings, tmp_path / "mutant", 4, forget)
    assert not same(outcome(tmp_path / "mutant"), outcome(tmp_path / "straight"))


# The best model


def test_a_model_from_a_step_that_was_lost_is_still_the_best(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, validate_every=2, checkpoint_every=5)
    train(settings, tmp_path / "straight")
    kill_and_resume(settings, tmp_path / "run", 5)
    assert same(outcome(tmp_path / "run"), outcome(tmp_path / "straight"))


def test_a_damaged_best_model_is_told_and_written_anew(tmp_path: Path) -> None:
    settings, lines = settings_in(tmp_path), []
    train(settings, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    content = bytearray(run.model.read_bytes())
    content[-3] ^= 1
    run.model.write_bytes(content)
    run.summary.unlink()
    longer = settings_in(tmp_path, steps=9)
    summary = train(longer, tmp_path / "run", resume=True, say=lines.append)
    assert any("model.safetensors: damaged" in line and "validation replaces it" in line for line in lines)
    assert read_model(run.model)[0].step == summary["best_step"] == 9


# The data


def test_data_that_changed_are_refused_unless_that_is_allowed(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "heed", _stop_at(5))
        with pytest.raises(Stopped):
            train(settings, tmp_path / "run")
    content = bytearray((tmp_path / "data.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "data.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"/run: the data changed .*SHA-256 .*--allow-data-change"):
        train(settings, tmp_path / "run", resume=True)
    lines: list[str] = []
    train(settings, tmp_path / "run", resume=True, allow_data_change=True, say=lines.append)
    assert any("data changed" in line for line in lines)


def _stop_at(calls: int) -> Callable[[], None]:
    left = [calls]

    def heed() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stopped(signal.SIGTERM, "stopped by SIGTERM")

    return heed
