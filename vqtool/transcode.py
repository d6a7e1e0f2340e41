"""Whole files through a tokenizer: data to an index file, and back.

Shapes: N rows, L positions per sample, Q levels.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.chunks import chunk_rows
from vqtool.data.layout import sample_shape
from vqtool.encoding import encoding
from vqtool.errors import DataError
from vqtool.indices import (
    Manifest,
    check_indices_output,
    check_not_input,
    check_output,
    index_dtype,
    manifest_path,
    read_indices,
    writing_array,
    writing_indices,
)
from vqtool.progress import pass_bar
from vqtool.semantic_ids import IdCounter, numbered
from vqtool.signals import noting_signals
from vqtool.tokenizer import Tokenizer, to_numpy


@noting_signals()
def encode_file(
    tokenizer: Tokenizer,
    out: Path,
    data: str | None = None,
    key: str | None = None,
    batch_size: int = 4096,
    overwrite: bool = False,
) -> Manifest:
    """Encode data into an index file and its manifest, as many rows at a time as `batch_rows` makes of `batch_size`.

    Args:
        data: what `data.path` may be; None: the run's own, whole and in its order.
        key: the name of the array in a file of several.

    Raises:
        DataError: the data are not like the run's, or the output is there already.
    """
    check_indices_output(out, overwrite)
    with encoding(tokenizer, out, data, key) as job:
        with writing_indices(out, job.shape, job.dtype, job.manifest) as array:
            for start, indices in job.encoded(batch_size):
                array[start : start + len(indices)] = indices
        return job.manifest()


@noting_signals()
def encode_unique_file(
    tokenizer: Tokenizer,
    out: Path,
    data: str | None = None,
    key: str | None = None,
    batch_size: int = 4096,
    overwrite: bool = False,
    extend: Path | None = None,
) -> Manifest:
    """As `encode_file`, with one more level, a number that makes each row unique.

    All ids are held in memory on the way.

    Args:
        extend: a unique index file of the first rows of the same data; what it says of them stays as it is.

    Raises:
        DataError: also where a sample has several positions, or a row's codes are not those that `extend` has.
    """
    check_indices_output(out, overwrite)
    with encoding(tokenizer, out, data, key) as job:
        rows, positions, *_ = job.shape
        if positions != 1:
            raise DataError(
                f"--unique: an id is one position, but samples have {positions} (grid {tuple(job.grid)}); set "
                "model.encoder.positions to 1, and the number of codes by model.quantizer.kind: residual"
            )
        published = _published(extend, tokenizer, rows) if extend else None
        ids = np.empty((rows, len(tokenizer.model.quantizer.codebook_sizes)), dtype=job.dtype)
        for start, indices in job.encoded(batch_size):
            ids[start : start + len(indices)] = indices.reshape(len(indices), -1)
        manifest = job.manifest()
    if extend and published is not None:  # together, or neither
        _check_same_ids(ids, published, extend)
    numbers = numbered(ids, None if published is None else published[:, -1])
    sizes = [*manifest.codebook_sizes, int(numbers.max()) + 1]
    manifest = replace(
        manifest,
        shape=[len(ids), 1, len(sizes)],
        dtype=index_dtype(tuple(sizes)).name,
        codebook_sizes=sizes,
        unique=True,
    )
    with writing_indices(out, manifest.shape, manifest.dtype, lambda: manifest) as array:
        array[:, 0, :-1] = ids
        array[:, 0, -1] = numbers
    return manifest


@noting_signals()
def decode_file(
    tokenizer: Tokenizer, path: Path, out: Path, overwrite: bool = False, levels: int | None = None
) -> tuple[tuple[int, ...], str]:
    """Decode an index file into an array of the data's type; returns its shape and the name of its type.

    Args:
        levels: how many of the first ones to decode; left out, all. The level that makes rows unique is none.

    Raises:
        DataError: another model wrote the indices, they are damaged, or the output is there already.
    """
    check_output(out, overwrite)
    check_not_input(out, [path])
    indices, manifest = read_indices(path)
    if manifest.model_sha256 != tokenizer.model_sha256:
        raise DataError(
            f"{path}: written by another model, {manifest.model_sha256[:12]}..., and this is "
            f"{tokenizer.model_sha256[:12]}..."
        )
    row_shape = tuple(manifest.row_shape)
    tokenizer.model.check_rows(row_shape, str(path))
    size = sample_shape(tokenizer.spec.layout, row_shape)[1]
    step = chunk_rows(tokenizer.model, size)
    if manifest.unique:
        _check_levels(path, manifest, list(tokenizer.model.quantizer.codebook_sizes))
        indices = indices[..., :-1].reshape(len(indices), *tokenizer.index_shape(size))
    shape, dtype = (len(indices), *row_shape), _numpy_dtype(tokenizer.spec.torch_dtype)
    with writing_array(out, shape, dtype) as array, pass_bar("decode", len(indices)) as bar:
        for start in range(0, len(indices), step):
            rows = tokenizer.decode(indices[start : start + step], row_shape, levels)
            array[start : start + len(rows)] = to_numpy(rows)
            bar.update(len(rows))
    return shape, dtype.name


def _published(path: Path, tokenizer: Tokenizer, rows: int) -> NDArray[Any]:
    """The unique ids (M, Q + 1) of an index file, after checking that so many `rows` can extend it."""
    ids, old = read_indices(path)
    if not old.unique:
        raise DataError(f"{path}: was not written with --unique; it has no ids to keep")
    if old.model_sha256 != tokenizer.model_sha256:
        raise DataError(
            f"{path}: written by another model, {old.model_sha256[:12]}..., whose ids this one "
            f"({tokenizer.model_sha256[:12]}...) cannot extend"
        )
    _check_levels(path, old, list(tokenizer.model.quantizer.codebook_sizes))
    if old.shape[0] > rows:
        raise DataError(
            f"{path}: has {old.shape[0]:,} rows, but the data have {rows:,}; a catalogue is extended by "
            "rows after its old ones"
        )
    ids = np.asarray(ids.reshape(len(ids), -1))
    counter = IdCounter()
    counter.add(ids)
    found = counter.result()
    if found and found.collision_rate:
        raise DataError(
            f"{path}: {found.rows - found.ids:,} of its rows share an id with another; it was changed since"
        )
    return ids


def _check_levels(path: Path, manifest: Manifest, sizes: list[int]) -> None:
    if manifest.codebook_sizes[:-1] != sizes:
        raise DataError(
            f"{manifest_path(path)}: says that rows are unique, by a level after the model's codebooks "
            f"{sizes}, but has codebook sizes {manifest.codebook_sizes}"
        )


def _check_same_ids(ids: NDArray[Any], published: NDArray[Any], path: Path) -> None:
    changed = (ids[: len(published)] != published[:, :-1]).any(axis=1).nonzero()[0]
    if len(changed):
        row = int(changed[0])
        raise DataError(
            f"{path}: row {row} has codes {published[row, :-1].tolist()} there, but {ids[row].tolist()} now: a row "
            f"that was published has changed or moved ({len(changed):,} have); new rows must come after the old ones"
        )


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The type of a .npy file for tensors of `dtype`: bfloat16, which NumPy has not, becomes float32."""
    return to_numpy(torch.empty(0, dtype=dtype)).dtype
