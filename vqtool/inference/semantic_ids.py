"""Unique semantic ids: encode data, append a level that makes the id of every row unique, and keep published ids.

Shapes: N rows, M published rows, Q levels.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import DataError
from vqtool.inference.encode import iter_indices, open_encode_job
from vqtool.inference.tokenizer import Tokenizer
from vqtool.metrics.collisions import row_keys
from vqtool.runs.index_file import (
    Manifest,
    atomic_write_indices,
    check_indices_output,
    index_dtype,
    manifest_path,
    read_indices,
)
from vqtool.runtime.progress import pass_bar
from vqtool.runtime.signals import deferred_signals


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

    The index file has the shape (N, 1, Q + 1), with Q = 1 for a vector quantizer. All ids are kept in memory.

    Args:
        extend: index file with the unique ids of the first M rows of these data; those rows keep their ids. The other
            arguments are those of `encode_file`.

    Raises:
        DataError: as `encode_file`; also if a sample has several tokens, or `extend` was written without `--unique` or
            by another model, has more rows than the data, or has other codes for its rows.
    """
    check_indices_output(out, overwrite)
    with open_encode_job(tokenizer, out, data, key) as job:
        rows, tokens, *_ = job.shape
        if tokens != 1:
            raise DataError(
                f"--unique: requires one token per sample, but this model produces {tokens} (grid "
                f"{tuple(job.grid)}); train a model with model.encoder.num_tokens: 1 (and model.quantizer.kind: "
                "residual, for several codes per id), or omit --unique"
            )
        published = _read_published(extend, tokenizer, rows) if extend else None
        ids = np.empty((rows, len(tokenizer.model.quantizer.codebook_sizes)), dtype=job.dtype)
        for start, indices in iter_indices(tokenizer, job.samples, job.rows, batch_size, "encode", job.scan):
            ids[start : start + len(indices)] = indices.reshape(len(indices), -1)
        manifest = job.manifest()
    if extend and published is not None:
        _check_same_codes(ids, published, extend)
    numbers = duplicate_numbers(ids, None if published is None else published[:, -1])
    sizes = [*manifest.codebook_sizes, int(numbers.max()) + 1]
    manifest = replace(
        manifest,
        shape=[len(ids), 1, len(sizes)],
        dtype=index_dtype(tuple(sizes)).name,
        codebook_sizes=sizes,
        unique=True,
    )
    with atomic_write_indices(out, manifest.shape, manifest.dtype, lambda: manifest) as array:
        array[:, 0, :-1] = ids
        array[:, 0, -1] = numbers
    return manifest


def duplicate_numbers(ids: NDArray[Any], published: NDArray[Any] | None = None) -> NDArray[np.int64]:
    """Number the rows with the same id in row order, 0, 1, ...: id and number together are unique.

    The number is the extra token of generative retrieval (Rajput et al. 2023, "Recommender Systems with Generative
    Retrieval", 3.1).

    Args:
        ids: (N, Q) codes of each row.
        published: (M,) numbers of the first M rows, which keep them, unique within each id. Later rows with a
            published id continue after its largest number.

    Returns:
        Numbers (N,), from 0.
    """
    numbers = np.zeros(0, dtype=np.int64) if published is None else published.astype(np.int64)
    with pass_bar("number ids", 3, "stages") as bar:
        groups = np.unique(row_keys(ids), return_inverse=True)[1]
        bar.update()
        next_number = np.zeros(groups.max(initial=-1) + 1, dtype=np.int64)
        np.maximum.at(next_number, groups[: len(numbers)], numbers + 1)
        new_groups = groups[len(numbers) :]
        # Sorted by group, stable: the rank of a row within its group is its distance from the first row of the group.
        order = np.argsort(new_groups, kind="stable")
        bar.update()
        first_of_group = np.searchsorted(new_groups[order], new_groups[order])
        ranks = np.empty(len(new_groups), dtype=np.int64)
        ranks[order] = np.arange(len(new_groups)) - first_of_group
        bar.update()
    return np.concatenate([numbers, next_number[new_groups] + ranks])


def check_unique_sizes(path: Path, manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Check that the manifest of an index file with unique ids has the tokenizer's codebook sizes, and one size more.

    Raises:
        DataError: the manifest has other codebook sizes.
    """
    sizes = list(tokenizer.model.quantizer.codebook_sizes)
    if manifest.codebook_sizes[:-1] != sizes:
        raise DataError(
            f"{manifest_path(path)}: damaged: unique: true, but codebook_sizes is {manifest.codebook_sizes}; expected "
            f"the sizes of the model, {sizes}, and one more; encode the data again"
        )


def _read_published(path: Path, tokenizer: Tokenizer, rows: int) -> NDArray[Any]:
    """Read the unique ids (M, Q + 1) of the index file `path`, for data of `rows` rows.

    Raises:
        DataError: the file has no unique ids, was written by another model, is damaged, or has more than `rows` rows.
    """
    indices, manifest = read_indices(path)
    if not manifest.unique:
        raise DataError(
            f"{path}: not written with --unique, so it has no ids to keep; extend a file written with --unique"
        )
    if manifest.model_sha256 != tokenizer.model_sha256:
        raise DataError(
            f"{path}: written by another model ({manifest.model_sha256[:12]}...), not by this one "
            f"({tokenizer.model_sha256[:12]}...); extend it with the run that wrote it"
        )
    check_unique_sizes(path, manifest, tokenizer)
    if manifest.shape[0] > rows:
        raise DataError(
            f"{path}: has {manifest.shape[0]:,} rows, but the data have only {rows:,}; keep all old rows and append "
            "new rows after them"
        )
    ids = np.asarray(indices.reshape(len(indices), -1))
    first_rows = np.unique(row_keys(ids), return_index=True)[1]
    repeated = np.setdiff1d(np.arange(len(ids)), first_rows)
    if len(repeated):
        raise DataError(
            f"{path}: damaged: {len(repeated):,} rows have the id of an earlier row (first: row {repeated[0]}, id "
            f"{ids[repeated[0]].tolist()}); restore the file"
        )
    return ids


def _check_same_codes(ids: NDArray[Any], published: NDArray[Any], path: Path) -> None:
    """Raise a DataError if the codes (N, Q) of the first M rows are not those of the published ids (M, Q + 1)."""
    changed = (ids[: len(published)] != published[:, :-1]).any(axis=1).nonzero()[0]
    if len(changed):
        row = int(changed[0])
        raise DataError(
            f"{path}: {len(changed):,} of its rows do not match the data (first: row {row}, codes "
            f"{published[row, :-1].tolist()} in the file, {ids[row].tolist()} in the data); keep the old rows "
            "unchanged and in order, and append new rows after them"
        )
