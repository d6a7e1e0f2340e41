"""What tests of training share: small runs on vectors, steps that can be stopped, and what they wrote."""

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vqtool.config import RunSettings
from vqtool.quantizers.initialization import RandomInitSettings
from vqtool.runs.run_directory import RunDirectory
from vqtool.training.batches import Batches

MLP = {"kind": "mlp", "width": 8, "layers": 1}
IDENTITY = {"kind": "identity"}
CODEBOOK_LOSS = {"kind": "codebook_loss"}
ENTROPY = {"kind": "entropy_only"}


def vectors() -> np.ndarray:
    """60 vectors of 4 numbers about five centres."""
    random = np.random.default_rng(0)
    centres = 3 * random.standard_normal((5, 4))
    return (centres[np.arange(60) % 5] + random.standard_normal((60, 4)) / 4).astype(np.float32)


def tiny(
    folder: Path,
    array: np.ndarray | None = None,
    *,
    encoder: dict[str, Any] = MLP,
    learning: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    seed: int = 0,
    **training: Any,
) -> RunSettings:
    """Settings of a run of 8 steps on an array, which is kept in `folder`; 60 vectors where it is left out."""
    np.save(folder / "data.npy", vectors() if array is None else array)
    # Dead codes are revived every other step.
    quantizer = {"kind": "vector", "codebook_size": 8, "dead_code_reset": {"window_hits": 4}}
    quantizer |= {"update": learning} if learning else {}
    few = {"steps": 8, "batch_size": 16, "warmup_steps": 2, "learning_rate": 0.01, "device": "cpu"}
    often = {"log_every": 1, "validate_every": 3, "checkpoint_every": 3}
    return RunSettings.model_validate(
        {
            "name": "tiny",
            "seed": seed,
            "data": {"kind": "tensors", "path": str(folder / "data.npy"), "validation": 0.2, **(data or {})},
            "model": {"encoder": encoder, "quantizer": quantizer},
            "loss": loss or {},
            "training": {**few, **often, **training},
        }
    )


def from_random(settings: RunSettings) -> RunSettings:
    """The same, with codes that need not wait for a sample to start from."""
    quantizer = settings.model.quantizer.model_copy(update={"init": RandomInitSettings()})
    return settings.model_copy(update={"model": settings.model.model_copy(update={"quantizer": quantizer})})


def stop_in_step(patch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal while a step, counted from 1, is under way."""
    before_step(patch, step, lambda: signal.raise_signal(number))


def die_in_step(patch: pytest.MonkeyPatch, step: int, death: type[BaseException]) -> None:
    """End a run without another word, before a step, counted from 1."""

    def die() -> None:
        raise death

    before_step(patch, step, die)


def before_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do something before a step, counted from 1."""
    take = Batches.take

    def acting(batches: Batches, at: int) -> Tensor:
        if at == step - 1:
            act()
        return take(batches, at)

    patch.setattr(Batches, "take", acting)


def logged(folder: Path) -> list[dict[str, Any]]:
    """The objects of metrics.jsonl."""
    return [json.loads(line) for line in RunDirectory(folder).metrics.read_text().splitlines()]


def without_speed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Logged objects but for what a clock says."""
    return [{tag: value for tag, value in line.items() if "throughput" not in tag} for line in lines]


def checkpoint(folder: Path, step: int) -> dict[str, Any]:
    """What is in a run's checkpoint."""
    content: dict[str, Any] = torch.load(RunDirectory(folder).checkpoints / f"step-{step:09d}.pt", weights_only=True)
    return content


def resign(path: Path) -> None:
    """Give a checkpoint's file the marker that it would have."""
    marker = json.loads(path.with_suffix(".json").read_text())
    marker["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(marker))


def model_of(folder: Path) -> dict[str, Tensor]:
    """The tensors of a run's best model."""
    tensors: dict[str, Tensor] = load_file(RunDirectory(folder).model)
    return tensors


def assert_same(first: Any, second: Any) -> None:
    """Nested states are equal, tensors bit for bit."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    else:
        assert first == second
