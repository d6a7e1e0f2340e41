"""The index file (tokens.npy) and its manifest (tokens.json): write, read and check.

Shapes: N samples, L tokens per sample, Q levels.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from vqtool.config.validation_errors import first_error
from vqtool.data import map_npy
from vqtool.errors import DataError
from vqtool.runtime.files import (
    atomic_write,
    check_format_version,
    error_reason,
    fsync_path,
    preallocate,
    read_json,
    to_json,
)
from vqtool.runtime.terminal import pluralize

# Version of the format of the index file and its manifest; no other version is read.
FORMAT_VERSION = 1
_MAX_MANIFEST_BYTES = 1 << 26  # enough for hundreds of thousands of shards
_REMEDY = "encode the data again"

Size = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class Manifest:
    """Description of an index file. It contains no timestamps and no paths.

    Attributes:
        format_version: version of the format of the index file and the manifest.
        shape: shape of the index file, (N, L) or (N, L, Q).
        dtype: name of the dtype of the index file: the smallest for `codebook_sizes` (see `index_dtype`).
        grid: spatial shape of the L tokens, in row-major order.
        codebook_sizes: number of indices of each level: its K, or for the last level of `unique` ids the largest number
            plus 1.
        row_shape: shape of one row of the data.
        model_sha256: SHA-256 of the model.safetensors that encoded the data.
        data_sha256: SHA-256 of the data; for several shards, of their digests in order.
        shards: name, number of rows and sha256 of each file of the data, by the keys name, rows and sha256.
        layout: meaning of the axes of a row, such as C for a vector and CHW for an image.
        unique: whether the last level is not a code, but a number that makes the ids of all rows distinct. Then L is 1
            and Q counts this level.
    """

    format_version: int = FORMAT_VERSION
    shape: Annotated[list[Size], Field(min_length=2, max_length=3)]
    dtype: Annotated[str, Field(pattern=r"^uint(8|16|32)$")]
    grid: list[Size]
    codebook_sizes: Annotated[list[Annotated[Size, Field(le=1 << 28)]], Field(min_length=1)]
    row_shape: list[Size]
    model_sha256: Sha256
    data_sha256: Sha256
    shards: list[dict[str, Any]]
    layout: str = ""
    unique: bool = False


def index_dtype(codebook_sizes: tuple[int, ...]) -> np.dtype[Any]:
    """Return the smallest unsigned dtype that holds every index of codebooks of these sizes."""
    return np.min_scalar_type(max(codebook_sizes) - 1)


def manifest_path(path: Path) -> Path:
    """Return the path of the manifest: tokens.json for tokens.npy."""
    return path.with_suffix(".json")


def check_output(path: Path, overwrite: bool) -> None:
    """Check that `path` is a suitable name for an output array. Permissions and disk space are not checked.

    Raises:
        DataError: the name does not end in .npy, the directory does not exist, `path` is a directory, or the file
            exists without `overwrite`.
    """
    if path.suffix != ".npy":
        raise DataError(f"{path}: the name of the output must end in .npy")
    if path.parent.exists() and not path.parent.is_dir():
        raise DataError(f"{path}: {path.parent} is a file, not a directory; name another output")
    if not path.parent.is_dir():
        raise DataError(f"{path}: directory {path.parent} does not exist; create it, or name another output")
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name a file")
    if path.exists() and not overwrite:
        raise DataError(f"{path}: already exists; use --overwrite to replace it")


def check_indices_output(path: Path, overwrite: bool) -> None:
    """Check `path` for an index file and its manifest, as `check_output` does for an array.

    An existing manifest without an index file may be replaced without `overwrite`: a process that is killed between the
    two renames leaves one.

    Raises:
        DataError: as in `check_output`, or the path of the manifest is a directory or, without `overwrite`, a file that
            is not a manifest.
    """
    check_output(path, overwrite)
    manifest = manifest_path(path)
    if manifest.is_dir():
        raise DataError(f"{manifest}: is a directory, but the manifest is written there; name another output")
    if manifest.exists() and not overwrite:
        try:
            _parse_manifest(manifest)
        except DataError as error:
            raise DataError(f"{manifest}: already exists; use --overwrite to replace it") from error


def check_not_input(path: Path, inputs: Sequence[Path], name: str = "") -> None:
    """Check that an output does not replace or extend the input.

    Args:
        path: file to write.
        inputs: files that are read.
        name: the input as the user named it. If it is a directory, all files in it are inputs.

    Raises:
        DataError: the output is one of `inputs`, or is in the directory `name`.
    """
    if os.path.realpath(path) in map(os.path.realpath, inputs):
        raise DataError(f"{path}: is also the input; name another output")
    if name and os.path.realpath(path.parent) == os.path.realpath(name):
        raise DataError(
            f"{path}: is inside the data directory {name}, so it would be read as data from now on; write to another "
            "directory"
        )


@contextmanager
def atomic_write_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Yield a memory-mapped array to fill; on success it becomes the .npy file `path`, on failure it is removed.

    Raises:
        DataError: the file cannot be written; a full disk is found before the array is filled.
    """
    with atomic_write(path) as temp:
        array = np.lib.format.open_memmap(temp, mode="w+", dtype=dtype, shape=shape)
        preallocate(temp)
        yield array
        array.flush()


@contextmanager
def atomic_write_indices(
    path: Path, shape: Sequence[int], dtype: str, manifest: Callable[[], Manifest]
) -> Iterator[NDArray[Any]]:
    """Yield a memory-mapped array to fill; on success write the manifest, then rename the array to `path`.

    An index file therefore always has its own manifest, even if the process is killed.

    Args:
        manifest: returns the manifest; called after the array is filled.

    Raises:
        DataError: one of the files cannot be written.
    """
    with atomic_write_array(path, tuple(shape), np.dtype(dtype)) as array:
        yield array
        array.flush()  # type: ignore[attr-defined]
        with atomic_write(manifest_path(path)) as temp:
            temp.write_text(to_json(asdict(manifest())), encoding="utf-8")
            fsync_path(temp)
            path.unlink(missing_ok=True)  # old indices must not be read with a new manifest


def read_indices(path: Path) -> tuple[NDArray[Any], Manifest]:
    """Memory-map an index file (N, L) or (N, L, Q), read-only, and read its manifest.

    The indices are not compared with the codebook sizes.

    Raises:
        DataError: a file is missing or damaged, or the manifest does not describe the array.
    """
    manifest = read_manifest(path)
    array = map_npy(path)
    if list(array.shape) != manifest.shape or array.dtype.name != manifest.dtype:
        raise DataError(
            f"{path}: contains {array.dtype.name} {list(array.shape)}, but {manifest_path(path).name} describes "
            f"{manifest.dtype} {manifest.shape}; {_REMEDY}"
        )
    levels = array.shape[2] if array.ndim == 3 else 1
    if levels != len(manifest.codebook_sizes):
        raise DataError(
            f"{manifest_path(path)}: damaged: codebook_sizes: {pluralize(len(manifest.codebook_sizes), 'size')}, but "
            f"{path.name} has {pluralize(levels, 'level')}; {_REMEDY}"
        )
    if manifest.unique and (levels < 2 or array.shape[1] != 1):
        raise DataError(
            f"{manifest_path(path)}: damaged: unique: true, but shape is {manifest.shape}; unique ids have one token "
            f"and at least two levels; {_REMEDY}"
        )
    return array, manifest


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of an index file.

    Raises:
        DataError: the index file does not exist, or its manifest is missing, damaged or in an unknown format.
    """
    manifest = manifest_path(path)
    if not path.exists():
        raise DataError(f"{path}: does not exist")
    if not manifest.exists():
        raise DataError(
            f"{path}: its manifest {manifest.name}, which describes the indices, is missing; restore it, or {_REMEDY}"
        )
    return _parse_manifest(manifest)


def _parse_manifest(path: Path) -> Manifest:
    try:
        content = read_json(path, _MAX_MANIFEST_BYTES)
        check_format_version(path, content.get("format_version"), FORMAT_VERSION, "manifest", _REMEDY, DataError)
        manifest = Manifest(**content)
    except (OSError, ValueError, TypeError) as error:
        reason = first_error(error) if isinstance(error, ValidationError) else error_reason(error)
        raise DataError(f"{path}: damaged: {reason}; {_REMEDY}") from error
    dtype = index_dtype(tuple(manifest.codebook_sizes)).name
    if manifest.dtype != dtype:
        raise DataError(
            f"{path}: damaged: dtype: {manifest.dtype}, but codebook_sizes {manifest.codebook_sizes} require {dtype}; "
            f"{_REMEDY}"
        )
    return manifest
