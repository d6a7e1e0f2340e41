"""model.safetensors: the best model, with the metrics and code counts of the validation that selected it.

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
from vqtool.metrics.collisions import IdCounts
from vqtool.runtime.files import atomic_write, check_format_version, error_reason, parse_json, read_error_reason

# Version of the format of the file; no other version is read.
FORMAT_VERSION = 1
# Name of the tensor (K,) of code counts of a level, beside the weights; the level's number follows.
_COUNTS_PREFIX = "validation.counts."
# Name of the tensor (2,) of the number of samples in the best validation, and of distinct ids among them.
_DISTINCT_NAME = "validation.distinct"
# The only key of the safetensors metadata, because the library writes several keys in random order. Its value is JSON.
_METADATA_KEY = "vqtool"
_REMEDY = "restore the file from a copy, or train the run again"


class SavedModel(NamedTuple):
    """Content of model.safetensors.

    A file that another program wrote has weights only: all attributes except `state` are None or empty.

    Attributes:
        state: state dict of the model.
        counts: hits (K,), int64, of the codes of each level in the best validation.
        distinct: number of samples and of distinct ids in that validation; None if it counted no ids.
        step: number of training steps taken before that validation.
        metrics: metrics of that validation, by tag.
        tokens: number of tokens of all training samples: samples times L.
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
    """Write a model atomically. Equal models give equal bytes.

    Raises:
        DataError: the file cannot be written; an existing file is not touched.
        ValueError: a metric is NaN or infinite.
    """
    content = serialize_model(model)
    with atomic_write(path) as temp:
        temp.write_bytes(content)


def serialize_model(model: SavedModel) -> bytes:
    """Return the bytes of model.safetensors for a model, as `write_model` writes them."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state.items()}
    tensors |= {f"{_COUNTS_PREFIX}{level}": counts.contiguous() for level, counts in enumerate(model.counts)}
    if model.distinct:
        tensors[_DISTINCT_NAME] = torch.tensor([model.distinct.rows, model.distinct.ids])
    metadata: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "step": model.step,
        "metrics": model.metrics,
        "tokens": model.tokens,
        "data_sha256": model.data_sha256,
    }
    metadata["sha256"] = _digest(tensors, metadata)
    return save(tensors, metadata={_METADATA_KEY: json.dumps(metadata, allow_nan=False)})


def read_model(path: Path) -> tuple[SavedModel, str]:
    """Read a model, with tensors on the CPU; return it and the SHA-256 of the file.

    Raises:
        CheckpointError: the file is missing or damaged, or has another format version.
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
            f"{path}: damaged: its header is invalid or the file is truncated ({detail}); {_REMEDY}"
        ) from error
    try:
        metadata = _parse_metadata(content)
        if metadata is not None:
            version = metadata.get("format_version")
            check_format_version(path, version, FORMAT_VERSION, "model", "train the run again", CheckpointError)
            if metadata.pop("sha256") != _digest(tensors, metadata):
                raise CheckpointError(f"{path}: damaged: SHA-256 does not match the content; {_REMEDY}")
        return _parse_model(tensors, metadata or {}), hashlib.sha256(content).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: damaged: its metadata are invalid ({error_reason(error)}); {_REMEDY}"
        ) from error


def _parse_model(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> SavedModel:
    """Move the statistics of the validation out of `tensors`, which then is the state dict of the returned model.

    Raises:
        ValueError: a statistic has the wrong name, shape or type.
    """
    levels = [name.removeprefix(_COUNTS_PREFIX) for name in tensors if name.startswith(_COUNTS_PREFIX)]
    if not all(level.isdecimal() for level in levels):
        raise ValueError(f"{_COUNTS_PREFIX}*: expected a level number at the end of the name")
    counts = [tensors.pop(f"{_COUNTS_PREFIX}{level}") for level in sorted(levels, key=int)]
    if any(level_counts.ndim != 1 for level_counts in counts):
        raise ValueError(f"{_COUNTS_PREFIX}*: expected tensors with one axis")
    if _DISTINCT_NAME in tensors and tensors[_DISTINCT_NAME].shape != (2,):
        raise ValueError(f"{_DISTINCT_NAME}: expected shape (2,), got {tuple(tensors[_DISTINCT_NAME].shape)}")
    distinct = IdCounts(*tensors.pop(_DISTINCT_NAME).tolist()) if _DISTINCT_NAME in tensors else None
    metrics = metadata.get("metrics", {})
    if not isinstance(metrics, dict) or not all(isinstance(value, int | float) for value in metrics.values()):
        raise ValueError("metrics: expected a number for each name")
    return SavedModel(
        state=tensors,
        counts=counts,
        distinct=distinct,
        step=metadata.get("step"),
        metrics=metrics,
        tokens=metadata.get("tokens"),
        data_sha256=metadata.get("data_sha256"),
    )


def _parse_metadata(content: bytes) -> dict[str, Any] | None:
    """Parse vqtool's metadata in the header of a safetensors file; None if another program wrote it, without metadata.

    The header is JSON; its length is in the first 8 bytes of the file, little-endian.

    Raises:
        ValueError: the header has metadata, but not those of vqtool, or they are not JSON.
    """
    header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
    entries = header.get("__metadata__")
    if entries is None:
        return None
    if _METADATA_KEY not in entries:
        raise ValueError(f"entry {_METADATA_KEY} is missing")
    return parse_json(entries[_METADATA_KEY])


def _digest(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> str:
    """Return the SHA-256 of the metadata (without "sha256") and of all tensors (name, dtype, shape, bytes) by name."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
