"""Short runs, each built to have one fault, or none. Every one is trained for real, on one core, in a second or two."""

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
TWO_TOKENS = {**MLP, "num_tokens": 2}
CONVOLUTION = {"width": 16, "res_blocks": 0}
GAUSSIAN = {"kind": "gaussian", "dim": 8}
MIXTURE = {"kind": "mixture", "components": 32, "dim": 8}
# How codes start, and what becomes of dead ones, in the bare form.
AT_RANDOM: Block = {"init": {"kind": "random"}, "dead_code_reset": None}
BARE: Block = {**AT_RANDOM, "update": {"kind": "entropy_only"}}
BY_GRADIENT: Block = {"update": {"kind": "codebook_loss"}}


def vector(size: int = 64, **more: Any) -> Block:
    """A vector quantizer's block."""
    return {"kind": "vector", "codebook_size": size, **more}


def residual(levels: int, size: int, **more: Any) -> Block:
    """A residual quantizer's block."""
    return {"kind": "residual", "levels": levels, "quantizer": vector(size), **more}


def run(
    source: Block | Array,
    quantizer: Block,
    encoder: Block = IDENTITY,
    *,
    samples: int = 6000,
    loss: Block | None = None,
    normalize: str | None = None,
    **training: Any,
) -> tuple[Block, Array | None]:
    """Blocks of a short run, and the array that it is on; none where its source is synthetic."""
    made = {"kind": "synthetic", "samples": samples, "source": source}
    array = None if isinstance(source, dict) else source
    data = made if array is None else {"kind": "tensors"}
    often = {"log_every": 1000, "checkpoint_every": 1000, "validate_every": 15, "device": "cpu", "loader_threads": 0}
    short = {"steps": 60, "batch_size": 256, "warmup_steps": 5, "learning_rate": 3e-3}
    return {
        "name": "run",
        "data": {**data, "validation": 0.3, **({"normalize": normalize} if normalize else {})},
        "model": {"encoder": encoder, "quantizer": quantizer},
        "loss": loss or {},
        "training": {**often, **short, **training},
    }, array


def make(folder: Path, blocks: Block, array: Array | None) -> Path:
    """Train a run."""
    if array is not None:
        np.save(folder / "data.npy", array)
        blocks["data"]["path"] = str(folder / "data.npy")
    train(RunSettings.model_validate(blocks), folder / "run")
    return folder / "run"


def repeated(rows: int) -> Array:
    """4,000 rows, of which so many are different."""
    random = np.random.default_rng(0)
    return random.standard_normal((rows, 8), dtype=np.float32)[random.integers(0, rows, 4000)]


def silence() -> Array:
    """6,000 rows, six in ten of them all zeros."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((6000, 8), dtype=np.float32)
    rows[random.random(6000) < 0.6] = 0
    return rows


def close() -> Array:
    """4,000 rows close to zero, where random codes lie far out."""
    return 0.005 * np.random.default_rng(1).standard_normal((4000, 4), dtype=np.float32)


def digits() -> Array:
    """1,797 handwritten digits of 8 by 8."""
    images: NDArray[np.float64] = load_digits().images
    return images[:, None].astype(np.float32)


# By name: the fault, and what makes the run. Where settings alone cannot have it, the data are built to.
FAULTS: dict[str, Callable[[], tuple[Block, Array | None]]] = {
    "entropy_only update, random init, no reset, 256 codes": lambda: run(
        MIXTURE, vector(256, **BARE), MLP, samples=8000, loss={"entropy": 0.1}
    ),
    "random init, no reset": lambda: run(MIXTURE, vector(**AT_RANDOM), TWO_TOKENS),
    "60% of the rows are zero": lambda: run(silence(), vector(32)),
    "256-dimensional noise, 4 codes": lambda: run({"kind": "gaussian", "dim": 256}, vector(4), steps=30),
    "codebook_loss update, random init, no reset, learning rate 1e-6": lambda: run(
        GAUSSIAN, vector(**BY_GRADIENT, **AT_RANDOM), learning_rate=1e-6, steps=45
    ),
    "random init far outside data near zero, no reset": lambda: run(close(), vector(16, **AT_RANDOM), normalize="none"),
    "40 distinct rows, 64 codes, no reset": lambda: run(repeated(40), vector(dead_code_reset=None)),
    "entropy_only update, entropy weight 1e-9, no reset": lambda: run(
        GAUSSIAN,
        vector(update={"kind": "entropy_only"}, dead_code_reset=None),
        TWO_TOKENS,
        loss={"entropy": 1e-9},
        steps=160,
    ),
    "temperature 1000, random init, no reset": lambda: run(
        MIXTURE, vector(**AT_RANDOM, temperature=1000.0), MLP, loss={"entropy": 0.1}
    ),
    "temperature 1e-5": lambda: run(GAUSSIAN, vector(temperature=1e-5), MLP, loss={"entropy": 0.1}),
    "commitment weight 0, learning rate 0.03": lambda: run(
        GAUSSIAN, vector(), MLP, loss={"commitment": 0}, learning_rate=0.03, validate_every=5
    ),
    "commitment weight 0, learning rate 0.03, no reset": lambda: run(
        GAUSSIAN, vector(dead_code_reset=None), MLP, loss={"commitment": 0}, learning_rate=0.03, validate_every=8
    ),
    "second residual level on noise": lambda: run(
        {"kind": "mixture", "components": 8, "dim": 128, "separation": 60.0}, residual(2, 16)
    ),
    "4,000 rows, 300 of them distinct": lambda: run(repeated(300), residual(3, 32)),
    "512 codes, 1,400 training vectors": lambda: run(GAUSSIAN, vector(512), samples=2000),
    "8 codes, 2-dimensional data": lambda: run({"kind": "gaussian", "dim": 2}, vector(8)),
}

HEALTHY: dict[str, Callable[[], tuple[Block, Array | None]]] = {
    "Gaussian vectors": lambda: run(GAUSSIAN, vector()),
    "mixture, one code per component": lambda: run(MIXTURE, vector(32)),
    "mixture, codebook loss and entropy loss": lambda: run(
        MIXTURE,
        vector(32, **BY_GRADIENT, temperature=2.0, temperature_unit="quantization_error", sample_entropy_weight=0.5),
        MLP,
        loss={"entropy": 0.1},
        steps=120,
    ),
    "semantic ids": lambda: run(
        {"kind": "gaussian", "dim": 16}, residual(3, 64, beam_size=4), samples=4000, steps=30, validate_every=10
    ),
    "levels with a shared codebook": lambda: run(GAUSSIAN, residual(2, 64, shared=True), steps=40),
    "product of two groups": lambda: run(GAUSSIAN, {"kind": "product", "groups": 2, "quantizer": vector(32)}),
    "digits": lambda: run(
        digits(),
        vector(32, codebook_dim=4),
        {"kind": "conv2d", "downsamples": 2, **CONVOLUTION},
        batch_size=64,
        steps=120,
        validate_every=30,
    ),
    "textures": lambda: run(
        {"kind": "textures", "channels": 1, "height": 16, "width": 16},
        vector(64, codebook_dim=8),
        {"kind": "conv2d", "downsamples": 2, **CONVOLUTION},
        samples=1000,
        batch_size=64,
        steps=90,
        validate_every=30,
    ),
    "tile maps": lambda: run(
        {"kind": "tiles", "height": 10, "width": 10, "room": 1},
        vector(32, codebook_dim=8),
        {"kind": "conv2d", "downsamples": 1, **CONVOLUTION},
        samples=1000,
        batch_size=64,
        steps=90,
        validate_every=30,
    ),
    "sequences": lambda: run(
        {"kind": "sinusoids", "length": 64, "tones": 1},
        vector(codebook_dim=8),
        {"kind": "conv1d", "downsamples": 3, **CONVOLUTION},
        samples=2000,
        batch_size=64,
        steps=90,
        validate_every=30,
    ),
    "finite scalar quantization": lambda: run(
        GAUSSIAN, {"kind": "fsq", "levels": [5, 5]}, {**MLP, "num_tokens": 4}, steps=120, validate_every=30
    ),
}
