"""Helpers to train short runs on arrays, and to write and read files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.config import RunSettings
from vqtool.training import train

Block = dict[str, Any]
CONV1D = {"kind": "conv1d", "width": 8, "downsamples": 1, "res_blocks": 0}
CONV2D = {"kind": "conv2d", "width": 8, "downsamples": 1, "res_blocks": 0}
MLP = {"kind": "mlp", "width": 16, "layers": 1, "num_tokens": 16}
TRANSFORMER = {"kind": "transformer", "num_tokens": 4, "patch_size": 4, "width": 8, "depth": 1, "heads": 2}
QUERIES = {**TRANSFORMER, "num_tokens": 16}
IDENTITY = {"kind": "identity"}


def make_run(
    folder: Path,
    array: NDArray[Any] | torch.Tensor,
    encoder: Block,
    dim: int | str = "auto",
    decoder: Block | None = None,
    quantizer: Block | None = None,
    **data: Any,
) -> Path:
    """Save an array in `folder`, train two steps on it, and return the run directory.

    Args:
        dim: codebook_dim of the default quantizer, a vector quantizer with 16 codes.
        quantizer: settings to use instead of the default quantizer.
        data: further keys of the data block.
    """
    path = save(folder, array)
    blocks = {
        "name": "tiny",
        "data": {"kind": "tensors", "path": str(path), "validation": 0.25, **data},
        "model": {
            "encoder": encoder,
            "quantizer": quantizer or {"kind": "vector", "codebook_size": 16, "codebook_dim": dim},
            "decoder": decoder,
        },
        "training": {"steps": 2, "batch_size": 8, "device": "cpu"},
    }
    train(RunSettings.model_validate(blocks), folder / "run")
    return folder / "run"


def save(folder: Path, array: NDArray[Any] | torch.Tensor, name: str = "data") -> Path:
    """Save an array as .npy, or a tensor as .pt; return the path."""
    if isinstance(array, torch.Tensor):
        torch.save(array, folder / f"{name}.pt")
        return folder / f"{name}.pt"
    np.save(folder / f"{name}.npy", array)
    return folder / f"{name}.npy"


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Return standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def files(out: Path) -> tuple[bytes, bytes]:
    """Return the bytes of an index file and of its manifest."""
    return out.read_bytes(), out.with_suffix(".json").read_bytes()
