"""Encode data to an index file, and decode index files.

Shapes: N rows, L tokens per sample, Q levels.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.data.layout import sample_shape
from vqtool.errors import DataError
from vqtool.inference.encoding import encoding
from vqtool.inference.tokenizer import Tokenizer, to_numpy
from vqtool.metrics.collisions import IdCounter, duplicate_numbers
from vqtool.models.chunks import chunk_rows
from vqtool.runs.index_file import (
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
from vqtool.runtime.progress import pass_bar
from vqtool.runtime.signals import deferred_signals


@deferred_signals()
def encode_file(
    tokenizer: Tokenizer,
    out: Path,
    data: str | None = None,
    key: str | None = None,
    batch_size: int = 4096,
    overwrite: bool = False,
) -> Manifest:
    """Encode data to an index file and its manifest.

    Args:
        out: index file to write, NAME.npy, shape (N, L) or (N, L, Q); the manifest is NAME.json.
        data: path as in `data.path`; None: the run's own data, all rows in order.
        key: name of the array in a file with several.
        batch_size: rows to read at a time, rounded up to whole chunks, four at most; does not change indices.
        overwrite: replace existing files.

    Raises:
        DataError: the data do not match the training data or contain NaN or infinity, or an output exists.
    """
    check_indices_output(out, overwrite)
    with encoding(tokenizer, out, data, key) as job:
        with writing_indices(out, job.shape, job.dtype, job.manifest) as array:
            for start, indices in job.encoded(batch_size):
                array[start : start + len(indices)] = indices
        return job.manifest()


@deferred_signals()
def encode_unique_file(
    tokenizer: Tokenizer,
    out: Path,
    data: str | None = None,
    key: str | None = None,
    batch_size: int = 4096,
    overwrite: bool = False,
    extend: Path | None = None,
) -> Manifest:
    """Encode data as `encode_file` does, and append a level that makes the id of every row unique.

    All ids are held in memory.

    Args:
        extend: index file with unique ids of the first rows of the same data; these rows keep their ids.

    Raises:
        DataError: as `encode_file`; also if a sample has several tokens, or a row's codes differ from those in
            `extend`.
    """
    check_indices_output(out, overwrite)
    with encoding(tokenizer, out, data, key) as job:
        rows, positions, *_ = job.shape
        if positions != 1:
            raise DataError(
                f"--unique: requires one token per sample, but this model produces {positions} (grid "
                f"{tuple(job.grid)}); train a model with model.encoder.num_tokens: 1 (and model.quantizer.kind: "
                "residual, for several codes per id), or omit --unique"
            )
        published = _published(extend, tokenizer, rows) if extend else None
        ids = np.empty((rows, len(tokenizer.model.quantizer.codebook_sizes)), dtype=job.dtype)
        for start, indices in job.encoded(batch_size):
            ids[start : start + len(indices)] = indices.reshape(len(indices), -1)
        manifest = job.manifest()
    if extend and published is not None:  # together, or neither
        _check_same_ids(ids, published, extend)
    numbers = duplicate_numbers(ids, None if published is None else published[:, -1])
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


@deferred_signals()
def decode_file(
    tokenizer: Tokenizer, path: Path, out: Path, overwrite: bool = False, levels: int | None = None
) -> tuple[tuple[int, ...], str]:
    """Decode an index file to a .npy file of rows in the layout, units and dtype of the training data.

    Args:
        path: index file to read.
        out: .npy file to write.
        overwrite: replace an existing output.
        levels: number of leading levels to decode (residual quantizers only); None: all. The level that `--unique`
            appended is never decoded and does not count.

    Returns:
        Shape and dtype name of the output.

    Raises:
        DataError: the indices were written by another model or are damaged, or the output exists.
    """
    check_output(out, overwrite)
    check_not_input(out, [path])
    tokenizer.check_levels(levels, "--levels")
    indices, manifest = read_indices(path)
    if manifest.model_sha256 != tokenizer.model_sha256:
        raise DataError(
            f"{path}: written by another model ({manifest.model_sha256[:12]}...), not by this one "
            f"({tokenizer.model_sha256[:12]}...); decode with the run that wrote it, or encode the data with this run"
        )
    row_shape = tuple(manifest.row_shape)
    tokenizer.model.check_rows(row_shape, f"{manifest_path(path)}: row_shape")
    size = sample_shape(tokenizer.spec.layout, row_shape)[1]
    step = chunk_rows(tokenizer.model, size)
    if manifest.unique:
        _check_levels(path, manifest, list(tokenizer.model.quantizer.codebook_sizes))
        indices = indices[..., :-1].reshape(len(indices), *tokenizer.index_shape(size))
    shape, dtype = (len(indices), *row_shape), _numpy_dtype(tokenizer.spec.torch_dtype)
    with writing_array(out, shape, dtype) as array, pass_bar("decode", len(indices)) as bar:
        for start in range(0, len(indices), step):
            checked = tokenizer.checked(indices[start : start + step], size, levels, str(path), start)
            rows = tokenizer.decode_checked(checked, size)
            array[start : start + len(rows)] = to_numpy(rows)
            bar.update(len(rows))
    return shape, dtype.name


def _published(path: Path, tokenizer: Tokenizer, rows: int) -> NDArray[Any]:
    """The unique ids (M, Q + 1) of an index file, after checking that data of `rows` rows can extend it."""
    ids, old = read_indices(path)
    if not old.unique:
        raise DataError(
            f"{path}: not written with --unique, so it has no ids to keep; extend a file written with --unique"
        )
    if old.model_sha256 != tokenizer.model_sha256:
        raise DataError(
            f"{path}: written by another model ({old.model_sha256[:12]}...), not by this one "
            f"({tokenizer.model_sha256[:12]}...); extend it with the run that wrote it"
        )
    _check_levels(path, old, list(tokenizer.model.quantizer.codebook_sizes))
    if old.shape[0] > rows:
        raise DataError(
            f"{path}: has {old.shape[0]:,} rows, but the data have only {rows:,}; keep all old rows and append new "
            "rows after them"
        )
    ids = np.asarray(ids.reshape(len(ids), -1))
    counter = IdCounter()
    counter.add(ids)
    found = counter.result()
    if found and found.collision_rate:
        repeated = np.setdiff1d(np.arange(len(ids)), np.unique(ids, axis=0, return_index=True)[1])
        raise DataError(
            f"{path}: damaged: {len(repeated):,} rows have the id of an earlier row (first: row {repeated[0]}, id "
            f"{ids[repeated[0]].tolist()}); restore the file"
        )
    return ids


def _check_levels(path: Path, manifest: Manifest, sizes: list[int]) -> None:
    if manifest.codebook_sizes[:-1] != sizes:
        raise DataError(
            f"{manifest_path(path)}: damaged: unique: true, but codebook_sizes is {manifest.codebook_sizes}; expected "
            f"the sizes of the model, {sizes}, and one more; encode the data again"
        )


def _check_same_ids(ids: NDArray[Any], published: NDArray[Any], path: Path) -> None:
    changed = (ids[: len(published)] != published[:, :-1]).any(axis=1).nonzero()[0]
    if len(changed):
        row = int(changed[0])
        raise DataError(
            f"{path}: {len(changed):,} of its rows do not match the data (first: row {row}, codes "
            f"{published[row, :-1].tolist()} in the file, {ids[row].tolist()} in the data); keep the old rows "
            "unchanged and in order, and append new rows after them"
        )


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The NumPy dtype for tensors of `dtype`; bfloat16, which NumPy does not have, becomes float32."""
    return to_numpy(torch.empty(0, dtype=dtype)).dtype
