"""model.safetensors: the best model, and the metrics of the validation that selected it.

Shapes: K codes.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vqtool.errors import CheckpointError
from vqtool.runtime.files import check_format_version, parse_json, error_reason, atomic_write, read_error_reason
from vqtool.metrics.collisions import IdCounts

# Version of the file's format; a reader refuses any other.
FORMAT_VERSION = 1
# Hits of each code in the best validation pass: one tensor per level, next to the weights.
_COUNTS = "validation.counts."
# Number of samples of that pass, and of distinct ids among them.
_DISTINCT = "validation.distinct"
# The only key of the safetensors metadata: the library writes several keys in random order. Its value is JSON.
_ABOUT = "vqtool"
_RESTORE = "restore the file from a copy, or train the run again"


class SavedModel(NamedTuple):
    """Content of model.safetensors. `step`, `tokens` and `data_sha256` are None if another program wrote the file.

    Attributes:
        state: weights and buffers.
        counts: hits (K,) of each level in the best validation pass.
        distinct: distinct ids in that pass, if samples are vectors.
        step: training step of that pass.
        metrics: metrics of that pass, by tag.
        tokens: number of tokens of all training samples.
        data_sha256: SHA-256 of the data.
    """

    state: dict[str, Tensor]
    counts: list[Tensor]
    distinct: IdCounts | None
    step: int | None
    metrics: dict[str, float]
    tokens: int | None
    data_sha256: str | None


def write_model(path: Path, model: SavedModel) -> None:
    """Write a model. Equal models give equal bytes.

    Raises:
        DataError: the file cannot be written; an existing file is not touched.
    """
    content = serialised(model)
    with atomic_write(path) as part:
        part.write_bytes(content)


def serialised(model: SavedModel) -> bytes:
    """Serialise a model to the bytes of its file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state.items()}
    tensors |= {f"{_COUNTS}{level}": hits.contiguous() for level, hits in enumerate(model.counts)}
    if model.distinct:
        tensors[_DISTINCT] = torch.tensor([model.distinct.rows, model.distinct.ids])
    about: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "step": model.step,
        "metrics": model.metrics,
        "tokens": model.tokens,
        "data_sha256": model.data_sha256,
    }
    about["sha256"] = _digest(tensors, about)
    return save(tensors, metadata={_ABOUT: json.dumps(about, allow_nan=False)})


def read_model(path: Path) -> tuple[SavedModel, str]:
    """Read a model, and compute the SHA-256 of the file.

    Raises:
        CheckpointError: the file is missing, damaged or in an unknown format.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent}: has no {path.name} yet; let the run reach its first validation (training.validate_every), "
            "or continue it with --resume"
        )
    try:
        content = path.read_bytes()
        tensors = load(content)
    except OSError as error:
        raise CheckpointError(f"{path}: {read_error_reason(error)}") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        detail = re.sub("^Error while deserializing( header)?: ", "", error_reason(error))
        raise CheckpointError(
            f"{path}: damaged: its header is invalid or the file is truncated ({detail}); {_RESTORE}"
        ) from error
    try:
        about = _about(content)
        if about is not None:
            found = about.get("format_version")
            check_format_version(path, found, FORMAT_VERSION, "model", "train the run again", CheckpointError)
            if about.pop("sha256") != _digest(tensors, about):
                raise CheckpointError(f"{path}: damaged: SHA-256 does not match the content; {_RESTORE}")
        return _model(tensors, about or {}), hashlib.sha256(content).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged: its metadata are invalid ({error_reason(error)}); {_RESTORE}") from error


def _model(tensors: dict[str, Tensor], about: dict[str, Any]) -> SavedModel:
    levels = [name.removeprefix(_COUNTS) for name in tensors if name.startswith(_COUNTS)]
    if not all(level.isdecimal() for level in levels):
        raise ValueError(f"{_COUNTS}*: expected a level number at the end of the name")
    counts = [tensors.pop(f"{_COUNTS}{level}") for level in sorted(levels, key=int)]
    if any(hits.ndim != 1 for hits in counts):
        raise ValueError(f"{_COUNTS}*: expected tensors with one axis")
    if _DISTINCT in tensors and tensors[_DISTINCT].shape != (2,):
        raise ValueError(f"{_DISTINCT}: expected shape (2,), got {tuple(tensors[_DISTINCT].shape)}")
    distinct = IdCounts(*tensors.pop(_DISTINCT).tolist()) if _DISTINCT in tensors else None
    return SavedModel(
        tensors, counts, distinct, about.get("step"), _metrics(about), about.get("tokens"), about.get("data_sha256")
    )


def _metrics(about: dict[str, Any]) -> dict[str, float]:
    metrics: dict[str, float] = about.get("metrics", {})
    if not isinstance(metrics, dict) or not all(isinstance(value, int | float) for value in metrics.values()):
        raise ValueError("metrics: expected a number for each name")
    return metrics


def _about(content: bytes) -> dict[str, Any] | None:
    """vqtool's metadata of a safetensors file; None if the file has no metadata: another program wrote it."""
    metadata = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__")
    if metadata is None:
        return None
    if _ABOUT not in metadata:
        raise ValueError(f"entry {_ABOUT} is missing")
    return parse_json(metadata[_ABOUT])


def _digest(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """SHA-256 of tensors, by name, and of their metadata."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
