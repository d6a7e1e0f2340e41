"""model.safetensors: the best model, and the validation that chose it.

Shapes: K codes.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vqtool.errors import CheckpointError
from vqtool.files import replacing
from vqtool.semantic_ids import Distinct

# Hits of each code in the best validation pass, a tensor a level, beside the weights.
_COUNTS = "validation.counts."
# Samples of that pass, and the distinct ids among them.
_DISTINCT = "validation.distinct"
# In the file's metadata, under a single key, for the library writes several in an order left to chance.
_ABOUT = "vqtool"


class SavedModel(NamedTuple):
    """What model.safetensors holds."""

    state: dict[str, Tensor]
    """weights and buffers."""
    counts: list[Tensor]
    """(K,) of each level, hits in the best validation pass."""
    distinct: Distinct | None
    """ids in that pass, where samples are vectors."""
    step: int | None
    """after which that pass was; None where another program wrote the file."""
    metrics: dict[str, float]
    """of that pass, by tag; then none."""
    tokens: int | None
    """positions of all training samples; then None."""
    data_sha256: str | None
    """of the data; then None."""


def write_model(path: Path, model: SavedModel) -> None:
    """Write a model; equal ones are equal bytes.

    Raises:
        DataError: it cannot be written; what was there is as it was.
    """
    content = serialised(model)
    with replacing(path) as part:
        part.write_bytes(content)


def serialised(model: SavedModel) -> bytes:
    """What a model's file holds."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state.items()}
    tensors |= {f"{_COUNTS}{level}": hits.contiguous() for level, hits in enumerate(model.counts)}
    if model.distinct:
        tensors[_DISTINCT] = torch.tensor([model.distinct.rows, model.distinct.ids])
    about: dict[str, Any] = {"step": model.step, "metrics": model.metrics, "tokens": model.tokens}
    about["data_sha256"] = model.data_sha256
    about["sha256"] = _digest(tensors, about)
    return save(tensors, metadata={_ABOUT: json.dumps(about, allow_nan=False)})


def read_model(path: Path) -> tuple[SavedModel, str]:
    """What `write_model` wrote, and the SHA-256 of the file.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent}: has no {path.name} yet; the first validation (training.validate_every) writes it"
        )
    try:
        content = path.read_bytes()
        tensors = load(content)
        about = _about(content)
        if about and about.pop("sha256") != _digest(tensors, about):
            raise CheckpointError(f"{path}: damaged: what it holds is not what its SHA-256 says")
        return _model(tensors, about), hashlib.sha256(content).hexdigest()
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error or type(error).__name__}") from error


def _model(tensors: dict[str, Tensor], about: dict[str, Any]) -> SavedModel:
    levels = sorted((name for name in tensors if name.startswith(_COUNTS)), key=lambda name: int(name[len(_COUNTS) :]))
    counts = [tensors.pop(name) for name in levels]
    if any(hits.ndim != 1 for hits in counts):
        raise ValueError("counts of codes have one axis")
    distinct = Distinct(*tensors.pop(_DISTINCT).tolist()) if _DISTINCT in tensors else None
    return SavedModel(
        tensors, counts, distinct, about.get("step"), _metrics(about), about.get("tokens"), about.get("data_sha256")
    )


def _metrics(about: dict[str, Any]) -> dict[str, float]:
    metrics: dict[str, float] = about.get("metrics", {})
    if not all(isinstance(value, int | float) for value in metrics.values()):
        raise ValueError("a metric is no number")
    return metrics


def _about(content: bytes) -> dict[str, Any]:
    """What a file says of itself; nothing where another program wrote it, which is nobody's damage."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if "__metadata__" not in header:
        return {}
    about: dict[str, Any] = json.loads(header["__metadata__"][_ABOUT])
    return about


def _digest(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """The SHA-256 of tensors, by name, and of what is said about them."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
