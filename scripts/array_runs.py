"""Runs over arrays without a network: the codebook lies over the data themselves."""

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
from vqtool.data.synthetic.mixture import MixtureSettings
from vqtool.tokenizer import Tokenizer
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
    """Within, the tokenizer of a run over arrays, with vqtool's defaults but for what is given."""
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
    """60,000 samples of a mixture of 256 Gaussians, eight standard deviations apart at least, and its centres."""
    source = MixtureSettings(components=256, dim=16, separation=8.0)
    return source.generate(60_000, np.random.default_rng(seed)), source.centres(np.random.default_rng(seed))


def centres_found(centres: Array, codes: Array) -> int:
    """Centres with a code nearer than half the way to the next centre."""
    distances = torch.cdist(torch.from_numpy(centres), torch.from_numpy(np.asarray(codes, dtype=np.float32)))
    return int((distances.min(dim=1).values < 4.0).sum())
