"""Helpers of the training tests: settings of small runs, interruption of runs, and readers of their files."""

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
from vqtool.training.batches import BatchLoader

MLP = {"kind": "mlp", "width": 8, "layers": 1}
IDENTITY = {"kind": "identity"}
CODEBOOK_LOSS = {"kind": "codebook_loss"}
ENTROPY = {"kind": "entropy_only"}


def vectors() -> np.ndarray:
    """Return 60 vectors of 4 dimensions in five clusters."""
    random = np.random.default_rng(0)
    centres = 3 * random.standard_normal((5, 4))
    return (centres[np.arange(60) % 5] + random.standard_normal((60, 4)) / 4).astype(np.float32)


def tiny_settings(
    folder: Path,
    array: np.ndarray | None = None,
    *,
    encoder: dict[str, Any] = MLP,
    update: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    seed: int = 0,
    **training: Any,
) -> RunSettings:
    """Return the settings of a run of 8 steps on an array, saved in `folder`; default: `vectors()`."""
    np.save(folder / "data.npy", vectors() if array is None else array)
    # A window of 4 hits per code is two steps of 16 vectors.
    quantizer = {"kind": "vector", "codebook_size": 8, "dead_code_reset": {"window_hits": 4}}
    quantizer |= {"update": update} if update else {}
    short = {"steps": 8, "batch_size": 16, "warmup_steps": 2, "learning_rate": 0.01, "device": "cpu"}
    intervals = {"log_every": 1, "validate_every": 3, "checkpoint_every": 3}
    return RunSettings.model_validate(
        {
            "name": "tiny",
            "seed": seed,
            "data": {"kind": "tensors", "path": str(folder / "data.npy"), "validation": 0.2, **(data or {})},
            "model": {"encoder": encoder, "quantizer": quantizer},
            "loss": loss or {},
            "training": {**short, **intervals, **training},
        }
    )


def with_random_init(settings: RunSettings) -> RunSettings:
    """Return the settings with random instead of k-means initialisation: the first step already quantizes."""
    quantizer = settings.model.quantizer.model_copy(update={"init": RandomInitSettings()})
    return settings.model_copy(update={"model": settings.model.model_copy(update={"quantizer": quantizer})})


def stop_in_step(patch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal during a step, counted from 1."""
    call_before_step(patch, step, lambda: signal.raise_signal(number))


def raise_before_step(patch: pytest.MonkeyPatch, step: int, error: type[BaseException]) -> None:
    """Raise an error before a step, counted from 1. The run then ends without saving a checkpoint."""

    def fail() -> None:
        raise error

    call_before_step(patch, step, fail)


def call_before_step(patch: pytest.MonkeyPatch, step: int, function: Callable[[], None]) -> None:
    """Call a function before a step, counted from 1."""
    load = BatchLoader.load

    def load_after_call(loader: BatchLoader, index: int) -> Tensor:
        if index == step - 1:
            function()
        return load(loader, index)

    patch.setattr(BatchLoader, "load", load_after_call)


def logged_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of metrics.jsonl."""
    return [json.loads(line) for line in RunDirectory(folder).metrics.read_text().splitlines()]


def reproducible_log(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of metrics.jsonl without the throughput, which depends on the clock."""
    return [{tag: value for tag, value in line.items() if "throughput" not in tag} for line in logged_metrics(folder)]


def read_checkpoint(folder: Path, step: int) -> dict[str, Any]:
    """Return the content of a checkpoint's .pt file."""
    content: dict[str, Any] = torch.load(RunDirectory(folder).checkpoints / f"step-{step:09d}.pt", weights_only=True)
    return content


def update_checkpoint_marker(path: Path) -> None:
    """Write the SHA-256 of a .pt file, which a test has changed, to its marker."""
    marker = json.loads(path.with_suffix(".json").read_text())
    marker["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(marker))


def best_model_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of model.safetensors."""
    tensors: dict[str, Tensor] = load_file(RunDirectory(folder).model)
    return tensors


def assert_equal_states(first: Any, second: Any) -> None:
    """Assert that nested states are equal; tensors bit for bit."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal_states(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal_states(one, other)
    elif isinstance(first, Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    else:
        assert first == second
