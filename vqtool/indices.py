"""The index file and its manifest: written, read, verified.

Shapes: N samples, L positions per sample, Q levels.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vqtool.data import map_npy
from vqtool.errors import DataError
from vqtool.files import read_small, replacing, reserve, sync, to_json

_FORMAT = "vqtool indices 1"
# Room for hundreds of thousands of shards.
_LARGEST_MANIFEST = 1 << 26


Size = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Manifest:
    """What an index file says of itself; it holds no clock and no path.

    Attributes:
        shape: (N, L), or (N, L, Q).
        dtype: the smallest unsigned type that holds the largest index.
        grid: the row-major shape behind L.
        codebook_sizes: K of each level.
        row_shape: the shape of a row of the data.
        layout: how a row is read: C for a vector, CHW for an image.
        model_sha256: of the model.safetensors that wrote the indices.
        data_sha256: of the data; of several shards, that of their digests in order.
        unique: whether the last level only makes rows unique, and is no codebook's.
        shards: name, rows and sha256 of each file of the data.
    """

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
    format: str = _FORMAT


def index_dtype(codebook_sizes: tuple[int, ...]) -> np.dtype[Any]:
    """The smallest unsigned type that holds every index of codebooks of these sizes."""
    return np.min_scalar_type(max(codebook_sizes) - 1)


def manifest_path(path: Path) -> Path:
    """tokens.json of tokens.npy."""
    return path.with_suffix(".json")


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output that is there, or that is no .npy file in a folder that is.

    Raises:
        DataError: says which.
    """
    if path.suffix != ".npy":
        raise DataError(f"{path}: the name of an output must end in .npy")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}")
    if path.exists() and not overwrite:
        raise DataError(f"{path}: is there already; --overwrite replaces it")
    if path.is_dir():
        raise DataError(f"{path}: is a folder")


def check_indices_output(path: Path, overwrite: bool) -> None:
    """As `check_output`, for an index file with its manifest.

    A manifest alone is what a process leaves that was killed as it gave both their names; it may be replaced.

    Raises:
        DataError: also where another file has the manifest's name.
    """
    check_output(path, overwrite)
    beside = manifest_path(path)
    if beside.is_dir():
        raise DataError(f"{beside}: is a folder")
    if beside.exists() and not overwrite:
        try:
            _parsed(beside)
        except DataError as error:
            raise DataError(f"{beside}: is there already; --overwrite replaces it") from error


def check_not_input(path: Path, inputs: Sequence[Path], name: str = "") -> None:
    """Refuse an output that is one of the files it is made from, or would be the next time.

    Args:
        name: of the inputs; where it is a folder, all files in it are.

    Raises:
        DataError: it is.
    """
    if os.path.realpath(path) in map(os.path.realpath, inputs):
        raise DataError(f"{path}: is what would be read; name another output")
    if name and os.path.realpath(path.parent) == os.path.realpath(name):
        raise DataError(f"{path}: would be read as data from then on, for {name} is a folder of them; write elsewhere")


@contextmanager
def writing_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Yield a mapped array to be filled; on success it becomes the .npy file `path`."""
    with replacing(path) as part:
        array = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
        reserve(part)
        yield array
        array.flush()


@contextmanager
def writing_indices(
    path: Path, shape: Sequence[int], dtype: str, manifest: Callable[[], Manifest]
) -> Iterator[NDArray[Any]]:
    """Yield a mapped array to be filled; on success the manifest and then the index file take their names.

    So indices always have their manifest, whenever the process is killed.

    Args:
        manifest: asked for once the array is filled.
    """
    with writing_array(path, tuple(shape), np.dtype(dtype)) as array:
        yield array
        array.flush()  # type: ignore[attr-defined]
        with replacing(manifest_path(path)) as part:
            part.write_text(to_json(asdict(manifest())), encoding="utf-8")
            sync(part)
            path.unlink(missing_ok=True)  # Old indices must never stand beside a new manifest.


def read_indices(path: Path) -> tuple[NDArray[Any], Manifest]:
    """An index file, mapped, and its manifest.

    Raises:
        DataError: one of them is missing, damaged, or does not go with the other.
    """
    manifest = read_manifest(path)
    array = map_npy(path)
    if list(array.shape) != manifest.shape or array.dtype.name != manifest.dtype:
        raise DataError(
            f"{path}: holds {array.dtype.name} {list(array.shape)}, but {manifest_path(path).name} says "
            f"{manifest.dtype} {manifest.shape}"
        )
    levels = array.shape[2] if array.ndim == 3 else 1
    if levels != len(manifest.codebook_sizes):
        raise DataError(f"{manifest_path(path)}: {len(manifest.codebook_sizes)} codebook sizes for {levels} levels")
    if manifest.unique and (levels < 2 or array.shape[1] != 1):
        raise DataError(f"{manifest_path(path)}: says that rows are unique, but there is no level that makes them so")
    return array, manifest


def read_manifest(path: Path) -> Manifest:
    """What an index file says of itself.

    Raises:
        DataError: it is not there, or its manifest is missing or damaged.
    """
    beside = manifest_path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not beside.exists():
        raise DataError(f"{path}: has no manifest {beside.name} beside it, which says what model wrote the indices")
    return _parsed(beside)


def _parsed(beside: Path) -> Manifest:
    try:
        manifest = TypeAdapter(Manifest).validate_json(read_small(beside, _LARGEST_MANIFEST))
    except (OSError, ValidationError) as error:
        raise DataError(f"{beside}: not a manifest: {_first_fault(error)}") from error
    if manifest.format != _FORMAT:
        raise DataError(f"{beside}: not a manifest of this kind: format {manifest.format!r}, not {_FORMAT!r}")
    if manifest.dtype != index_dtype(tuple(manifest.codebook_sizes)).name:
        raise DataError(
            f"{beside}: says {manifest.dtype}, which is not the type for codebooks {manifest.codebook_sizes}"
        )
    return manifest


def _first_fault(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return str(error)
    fault = error.errors(include_url=False)[0]
    return ": ".join([".".join(map(str, fault["loc"])), fault["msg"]]) if fault["loc"] else fault["msg"]
