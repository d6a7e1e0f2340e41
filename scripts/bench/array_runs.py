"""Runs that quantize arrays directly (identity encoder)."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool import load
from vqtool.config import RunSettings
from vqtool.data.synthetic import MixtureSettings
from vqtool.inference.tokenizer import Tokenizer
from vqtool.training import train

Array = NDArray[np.float32]


@contextmanager
def trained(
    training: Array,
    test: Array,
    seed: int,
    quantizer: dict[str, Any],
    steps: int = 200,
    batch_size: int = 8192,
    entropy: float = 0.0,
) -> Iterator[Tokenizer]:
    """Train a quantizer on arrays with vqtool's defaults except for the arguments, and yield the tokenizer.

    Args:
        training: (N, D) training vectors, not normalised.
        test: (M, D) validation vectors, which select the best model.
        seed: of the run.
        quantizer: quantizer block of the config.
        entropy: weight of the entropy loss.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "train.npy", training)
        np.save(folder / "test.npy", test)
        data = {"kind": "tensors", "layout": "C", "normalize": "none"}
        settings = {
            "seed": seed,
            "data": data | {"path": str(folder / "train.npy"), "validation": str(folder / "test.npy")},
            "model": {"encoder": {"kind": "identity"}, "quantizer": quantizer},
            "loss": {"entropy": entropy},
            "training": {"steps": steps, "batch_size": batch_size, "validate_every": steps, "device": "cpu"},
        }
        train(RunSettings.model_validate(settings), folder / "run")
        yield load(folder / "run")


def mixture_samples(seed: int) -> tuple[Array, Array]:
    """Return samples (60000, 16) of a mixture of 256 Gaussians, and the centres (256, 16).

    The standard deviation is 1, and the smallest distance between two centres is 8.
    """
    source = MixtureSettings(components=256, dim=16, separation=8.0)
    return source.generate(60_000, np.random.default_rng(seed)), source.centres(np.random.default_rng(seed))


def centres_found(centres: Array, codes: Array) -> int:
    """Return the number of centres (M, D) of `mixture_samples` with a code of (K, D) less than 4 away.

    That is half the smallest distance between two centres.
    """
    distances = torch.cdist(torch.from_numpy(centres), torch.from_numpy(np.asarray(codes, dtype=np.float32)))
    return int((distances.min(dim=1).values < 4.0).sum())
