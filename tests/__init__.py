"""What tests of trained models share: small runs on arrays, and the files they write."""

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
    """A run of two steps on an array, kept beside it; of one codebook of 16 codes where `quantizer` is left out."""
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
    if isinstance(array, torch.Tensor):
        torch.save(array, folder / f"{name}.pt")
        return folder / f"{name}.pt"
    np.save(folder / f"{name}.npy", array)
    return folder / f"{name}.npy"


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def files(out: Path) -> tuple[bytes, bytes]:
    """The bytes of an index file and of its manifest."""
    return out.read_bytes(), out.with_suffix(".json").read_bytes()
