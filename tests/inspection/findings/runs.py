"""Configs of short runs, each built to have one fault or none. Each run trains in a second or two on one core."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from vqtool.config import RunSettings
from vqtool.training import train

Block = dict[str, Any]
Array = NDArray[np.float32]

IDENTITY = {"kind": "identity"}
MLP = {"kind": "mlp", "width": 32, "layers": 1}
MLP_TWO_TOKENS = {**MLP, "num_tokens": 2}
SMALL_CONV = {"width": 16, "res_blocks": 0}
GAUSSIAN = {"kind": "gaussian", "dim": 8}
MIXTURE = {"kind": "mixture", "components": 32, "dim": 8}
# Quantizer settings without the defaults that keep codes in use.
RANDOM_INIT_NO_RESET: Block = {"init": {"kind": "random"}, "dead_code_reset": None}
ENTROPY_ONLY: Block = {**RANDOM_INIT_NO_RESET, "update": {"kind": "entropy_only"}}
CODEBOOK_LOSS: Block = {"update": {"kind": "codebook_loss"}}


def vector(size: int = 64, **more: Any) -> Block:
    """Return the config block of a vector quantizer."""
    return {"kind": "vector", "codebook_size": size, **more}


def residual(levels: int, size: int, **more: Any) -> Block:
    """Return the config block of a residual quantizer."""
    return {"kind": "residual", "levels": levels, "quantizer": vector(size), **more}


def run_config(
    source: Block | Array,
    quantizer: Block,
    encoder: Block = IDENTITY,
    *,
    samples: int = 6000,
    loss: Block | None = None,
    normalize: str | None = None,
    **training: Any,
) -> tuple[Block, Array | None]:
    """Return the config of a short run, and the array that it trains on; None if its source is synthetic."""
    array = None if isinstance(source, dict) else source
    data = {"kind": "synthetic", "samples": samples, "source": source} if array is None else {"kind": "tensors"}
    intervals = {
        "log_every": 1000,
        "checkpoint_every": 1000,
        "validate_every": 15,
        "device": "cpu",
        "loader_threads": 0,
    }
    short = {"steps": 60, "batch_size": 256, "warmup_steps": 5, "learning_rate": 3e-3}
    return {
        "name": "run",
        "data": {**data, "validation": 0.3, **({"normalize": normalize} if normalize else {})},
        "model": {"encoder": encoder, "quantizer": quantizer},
        "loss": loss or {},
        "training": {**intervals, **short, **training},
    }, array


def train_run(folder: Path, config: Block, array: Array | None) -> Path:
    """Train a run in `folder` and return its directory."""
    if array is not None:
        np.save(folder / "data.npy", array)
        config["data"]["path"] = str(folder / "data.npy")
    train(RunSettings.model_validate(config), folder / "run")
    return folder / "run"


def repeated_rows(distinct: int) -> Array:
    """Return 4,000 rows, at most `distinct` of them different."""
    random = np.random.default_rng(0)
    return random.standard_normal((distinct, 8), dtype=np.float32)[random.integers(0, distinct, 4000)]


def mostly_zero_rows() -> Array:
    """Return 6,000 rows, about 60% of them zero."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((6000, 8), dtype=np.float32)
    rows[random.random(6000) < 0.6] = 0
    return rows


def rows_near_zero() -> Array:
    """Return 4,000 rows that are much closer to zero than randomly initialised codes."""
    return 0.005 * np.random.default_rng(1).standard_normal((4000, 4), dtype=np.float32)


def digits() -> Array:
    """Return 1,797 images of handwritten digits, 8 by 8 pixels."""
    images: NDArray[np.float64] = load_digits().images
    return images[:, None].astype(np.float32)


# Config of each faulty run, by a description of the fault: settings, or data where settings cannot cause it.
FAULTS: dict[str, Callable[[], tuple[Block, Array | None]]] = {
    "entropy_only update, random init, no reset, 256 codes": lambda: run_config(
        MIXTURE, vector(256, **ENTROPY_ONLY), MLP, samples=8000, loss={"entropy": 0.1}
    ),
    "random init, no reset": lambda: run_config(MIXTURE, vector(**RANDOM_INIT_NO_RESET), MLP_TWO_TOKENS),
    "60% of the rows are zero": lambda: run_config(mostly_zero_rows(), vector(32)),
    "256-dimensional noise, 4 codes": lambda: run_config({"kind": "gaussian", "dim": 256}, vector(4), steps=30),
    "codebook_loss update, random init, no reset, learning rate 1e-6": lambda: run_config(
        GAUSSIAN, vector(**CODEBOOK_LOSS, **RANDOM_INIT_NO_RESET), learning_rate=1e-6, steps=45
    ),
    "random init far outside data near zero, no reset": lambda: run_config(
        rows_near_zero(), vector(16, **RANDOM_INIT_NO_RESET), normalize="none"
    ),
    "40 distinct rows, 64 codes, no reset": lambda: run_config(repeated_rows(40), vector(dead_code_reset=None)),
    "entropy_only update, entropy weight 1e-9, no reset": lambda: run_config(
        GAUSSIAN,
        vector(update={"kind": "entropy_only"}, dead_code_reset=None),
        MLP_TWO_TOKENS,
        loss={"entropy": 1e-9},
        steps=160,
    ),
    "temperature 1000, random init, no reset": lambda: run_config(
        MIXTURE, vector(**RANDOM_INIT_NO_RESET, temperature=1000.0), MLP, loss={"entropy": 0.1}
    ),
    "temperature 1e-5": lambda: run_config(GAUSSIAN, vector(temperature=1e-5), MLP, loss={"entropy": 0.1}),
    "commitment weight 0, learning rate 0.03": lambda: run_config(
        GAUSSIAN, vector(), MLP, loss={"commitment": 0}, learning_rate=0.03, validate_every=5
    ),
    "commitment weight 0, learning rate 0.03, no reset": lambda: run_config(
        GAUSSIAN, vector(dead_code_reset=None), MLP, loss={"commitment": 0}, learning_rate=0.03, validate_every=8
    ),
    "second residual level on noise": lambda: run_config(
        {"kind": "mixture", "components": 8, "dim": 128, "separation": 60.0}, residual(2, 16)
    ),
    "4,000 rows, 300 of them distinct": lambda: run_config(repeated_rows(300), residual(3, 32)),
    "512 codes, 1,400 training vectors": lambda: run_config(GAUSSIAN, vector(512), samples=2000),
    "8 codes, 2-dimensional data": lambda: run_config({"kind": "gaussian", "dim": 2}, vector(8)),
}

# Config of each healthy run, by a description of its data or quantizer.
HEALTHY: dict[str, Callable[[], tuple[Block, Array | None]]] = {
    "Gaussian vectors": lambda: run_config(GAUSSIAN, vector()),
    "mixture, one code per component": lambda: run_config(MIXTURE, vector(32)),
    "mixture, codebook loss and entropy loss": lambda: run_config(
        MIXTURE,
        vector(32, **CODEBOOK_LOSS, temperature=2.0, temperature_unit="quantization_error", sample_entropy_weight=0.5),
        MLP,
        loss={"entropy": 0.1},
        steps=120,
    ),
    "semantic ids": lambda: run_config(
        {"kind": "gaussian", "dim": 16}, residual(3, 64, beam_size=4), samples=4000, steps=30, validate_every=10
    ),
    "levels with a shared codebook": lambda: run_config(GAUSSIAN, residual(2, 64, shared=True), steps=40),
    "product of two groups": lambda: run_config(GAUSSIAN, {"kind": "product", "groups": 2, "quantizer": vector(32)}),
    "digits": lambda: run_config(
        digits(),
        vector(32, codebook_dim=4),
        {"kind": "conv2d", "downsamples": 2, **SMALL_CONV},
        batch_size=64,
        steps=120,
        validate_every=30,
    ),
    "textures": lambda: run_config(
        {"kind": "textures", "channels": 1, "height": 16, "width": 16},
        vector(64, codebook_dim=8),
        {"kind": "conv2d", "downsamples": 2, **SMALL_CONV},
        samples=1000,
        batch_size=64,
        steps=90,
        validate_every=30,
    ),
    "tile maps": lambda: run_config(
        {"kind": "tiles", "height": 10, "width": 10, "room": 1},
        vector(32, codebook_dim=8),
        {"kind": "conv2d", "downsamples": 1, **SMALL_CONV},
        samples=1000,
        batch_size=64,
        steps=90,
        validate_every=30,
    ),
    "sequences": lambda: run_config(
        {"kind": "sinusoids", "length": 64, "tones": 1},
        vector(codebook_dim=8),
        {"kind": "conv1d", "downsamples": 3, **SMALL_CONV},
        samples=2000,
        batch_size=64,
        steps=90,
        validate_every=30,
    ),
    "finite scalar quantization": lambda: run_config(
        GAUSSIAN, {"kind": "fsq", "levels": [5, 5]}, {**MLP, "num_tokens": 4}, steps=120, validate_every=30
    ),
}
