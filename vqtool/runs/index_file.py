"""Write, read and verify the index file and its manifest.

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

from vqtool.config.problems import first_problem
from vqtool.data import map_npy
from vqtool.errors import DataError
from vqtool.runtime.files import check_format_version, read_json, error_reason, atomic_write, preallocate, fsync_path, to_json

# Version of the manifest's format; a reader refuses any other.
FORMAT_VERSION = 1
# Room for hundreds of thousands of shards.
_LARGEST_MANIFEST = 1 << 26
_AGAIN = "encode the data again"


Size = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class Manifest:
    """Description of an index file. It contains no timestamps and no paths.

    Attributes:
        format_version: version of the format of the index file and the manifest.
        shape: shape of the index file, (N, L) or (N, L, Q).
        dtype: the smallest unsigned dtype that holds the largest index.
        grid: shape whose row-major order gives the L tokens.
        codebook_sizes: K of each level.
        row_shape: shape of one row of the data.
        layout: meaning of the axes of a row, such as C for a vector and CHW for an image.
        model_sha256: SHA-256 of the model.safetensors that wrote the indices.
        data_sha256: SHA-256 of the data; for several shards, of their digests in order.
        unique: whether the last level is a number that makes ids unique, without a codebook.
        shards: name, rows and sha256 of each file of the data.
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
    """The smallest unsigned dtype that holds every index of codebooks of these sizes."""
    return np.min_scalar_type(max(codebook_sizes) - 1)


def manifest_path(path: Path) -> Path:
    """Path of the manifest: tokens.json for tokens.npy."""
    return path.with_suffix(".json")


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output that exists, is not named *.npy, or whose directory does not exist.

    Raises:
        DataError: in these cases.
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
    """Check an index file and its manifest as `check_output` does.

    A manifest without an index file may be replaced: a process that is killed between the two renames leaves one.

    Raises:
        DataError: also if a file that is not a manifest has the manifest's name.
    """
    check_output(path, overwrite)
    manifest = manifest_path(path)
    if manifest.is_dir():
        raise DataError(f"{manifest}: is a directory, but the manifest is written there; name another output")
    if manifest.exists() and not overwrite:
        try:
            _parse(manifest)
        except DataError as error:
            raise DataError(f"{manifest}: already exists; use --overwrite to replace it") from error


def check_not_input(path: Path, inputs: Sequence[Path], name: str = "") -> None:
    """Refuse an output that is one of the inputs, or that lies in a directory of inputs.

    Args:
        name: the input as given; if it is a directory, all files in it are inputs.

    Raises:
        DataError: in these cases.
    """
    if os.path.realpath(path) in map(os.path.realpath, inputs):
        raise DataError(f"{path}: is also the input; name another output")
    if name and os.path.realpath(path.parent) == os.path.realpath(name):
        raise DataError(
            f"{path}: is inside the data directory {name}, so it would be read as data from now on; write to another "
            "directory"
        )


@contextmanager
def writing_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Yield a memory-mapped array to fill; on success it becomes the .npy file `path`."""
    with atomic_write(path) as part:
        array = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
        preallocate(part)
        yield array
        array.flush()


@contextmanager
def writing_indices(
    path: Path, shape: Sequence[int], dtype: str, manifest: Callable[[], Manifest]
) -> Iterator[NDArray[Any]]:
    """Yield a memory-mapped array to fill; on success rename the manifest, then the index file.

    An index file therefore always has its manifest, even if the process is killed.

    Args:
        manifest: called once the array is filled.
    """
    with writing_array(path, tuple(shape), np.dtype(dtype)) as array:
        yield array
        array.flush()  # type: ignore[attr-defined]
        with atomic_write(manifest_path(path)) as part:
            part.write_text(to_json(asdict(manifest())), encoding="utf-8")
            fsync_path(part)
            path.unlink(missing_ok=True)  # old indices must not be read with a new manifest


def read_indices(path: Path) -> tuple[NDArray[Any], Manifest]:
    """Map an index file into memory, and read its manifest.

    Raises:
        DataError: one of them is missing or damaged, or they do not match.
    """
    manifest = read_manifest(path)
    array = map_npy(path)
    if list(array.shape) != manifest.shape or array.dtype.name != manifest.dtype:
        raise DataError(
            f"{path}: contains {array.dtype.name} {list(array.shape)}, but {manifest_path(path).name} describes "
            f"{manifest.dtype} {manifest.shape}; {_AGAIN}"
        )
    levels = array.shape[2] if array.ndim == 3 else 1
    if levels != len(manifest.codebook_sizes):
        raise DataError(
            f"{manifest_path(path)}: damaged: codebook_sizes: {_counted(len(manifest.codebook_sizes), 'size')}, but "
            f"{path.name} has {_counted(levels, 'level')}; {_AGAIN}"
        )
    if manifest.unique and (levels < 2 or array.shape[1] != 1):
        raise DataError(
            f"{manifest_path(path)}: damaged: unique: true, but shape is {manifest.shape}; unique ids have one token "
            f"and at least two levels; {_AGAIN}"
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
            f"{path}: its manifest {manifest.name}, which describes the indices, is missing; restore it, or {_AGAIN}"
        )
    return _parse(manifest)


def _parse(path: Path) -> Manifest:
    try:
        content = read_json(path, _LARGEST_MANIFEST)
        check_format_version(path, content.get("format_version"), FORMAT_VERSION, "manifest", _AGAIN, DataError)
        manifest = Manifest(**content)
    except (OSError, ValueError, TypeError) as error:
        what = first_problem(error) if isinstance(error, ValidationError) else error_reason(error)
        raise DataError(f"{path}: damaged: {what}; {_AGAIN}") from error
    dtype = index_dtype(tuple(manifest.codebook_sizes)).name
    if manifest.dtype != dtype:
        raise DataError(
            f"{path}: damaged: dtype: {manifest.dtype}, but codebook_sizes {manifest.codebook_sizes} require {dtype}; "
            f"{_AGAIN}"
        )
    return manifest


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
