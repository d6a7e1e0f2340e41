"""Tensor files: what arrays are in one, opened without reading them. Nothing is unpickled but tensors.

A reader maps a path to the arrays inside; the table at the end chooses it by the file's suffix.
"""

import math
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vqtool.data.rows import NumpyRows, Rows, TensorRows
from vqtool.errors import DataError


class Array(NamedTuple):
    """One array of a file: its shape (N, *row), the name of its type, and how to open it."""

    shape: tuple[int, ...]
    dtype: str
    open: Callable[[], Rows]


_FAULTS = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
)


def open_file(path: Path, key: str | None = None) -> Rows:
    """The rows of a file's array: the one called `key`, or its only one.

    Raises:
        DataError: no such file, not a file of its kind, no or several such arrays, or one that cannot hold samples.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: not a kind of file that can be read; expected {', '.join(READERS)}")
    try:
        name, array = _choose(path, reader(path), key)
        _check(f"{path}[{name}]" if name else str(path), array)
        return array.open()
    except _FAULTS as error:
        raise DataError(f"{path}: not a readable {path.suffix} file: {_first_line(error)}") from error


def _choose(path: Path, arrays: dict[str, Array], key: str | None) -> tuple[str, Array]:
    listing = "".join(f"\n  {name or '(unnamed)'}  {array.dtype} {array.shape}" for name, array in arrays.items())
    if not arrays:
        raise DataError(f"{path}: holds no array")
    if key is not None:
        if key not in arrays:
            raise DataError(f"{path}: no array {key!r}; it holds:{listing}")
        return key, arrays[key]
    if len(arrays) > 1:
        raise DataError(f"{path}: holds several arrays; name one with --key (data.key in the config):{listing}")
    return next(iter(arrays.items()))


def _check(what: str, array: Array) -> None:
    if array.dtype not in _DTYPES:
        raise DataError(f"{what}: arrays of type {array.dtype} are not supported; expected {', '.join(_DTYPES)}")
    if len(array.shape) < 2:
        raise DataError(f"{what}: shape {array.shape} has no axis behind the samples; expected (N, ...)")
    if 0 in array.shape:
        raise DataError(f"{what}: shape {array.shape} holds nothing")


_DTYPES = (
    *("float16", "bfloat16", "float32", "float64", "bool"),
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
)


def _read_npy(path: Path) -> dict[str, Array]:
    with path.open("rb") as file:
        shape, dtype = _npy_header(file)
    return {"": Array(shape, dtype.name, lambda: NumpyRows(_mapped(path)))}


def _mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _read_npz(path: Path) -> dict[str, Array]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                shape, dtype = _npy_header(file)
            claimed = math.prod(shape) * dtype.itemsize
            if claimed > member.file_size:
                raise DataError(
                    f"{path}[{name}]: the header claims {claimed:,} bytes, but the archive has {member.file_size:,}"
                )
            arrays[name] = Array(shape, dtype.name, _unpacker(path, name, member.file_size))
    return arrays


def _unpacker(path: Path, name: str, size: int) -> Callable[[], Rows]:
    def unpack() -> Rows:
        check_fits_memory(size, f"{path}[{name}]")
        with np.load(path, allow_pickle=False) as archive:
            return NumpyRows(archive[name])

    return unpack


def _read_safetensors(path: Path) -> dict[str, Array]:
    # The file stays mapped for as long as a tensor of it lives; a page is read when a row on it is.
    file = safe_open(path, framework="pt")
    arrays = {}
    for name in file.keys():  # noqa: SIM118 (not a dict)
        part = file.get_slice(name)
        dtype = _SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype())
        arrays[name] = Array(tuple(part.get_shape()), dtype, partial(_safetensors_rows, file, name))
    return arrays


def _safetensors_rows(file: Any, name: str) -> Rows:
    return TensorRows(file.get_tensor(name))


_SAFETENSORS_DTYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "BOOL": "bool",
    **{
        f"{letter}{bits}": f"{name}{bits}" for letter, name in (("U", "uint"), ("I", "int")) for bits in (8, 16, 32, 64)
    },
}


def _read_torch(path: Path) -> dict[str, Array]:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not a file that torch.save writes today, which can be mapped; save the tensor again")
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    tensors = content if isinstance(content, dict) else {"": content}
    arrays = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise DataError(
                f"{path}: holds a {type(tensor).__name__} where a tensor, or a dict of tensors, is expected"
            )
        dtype = str(tensor.dtype).removeprefix("torch.") if tensor.layout == torch.strided else str(tensor.layout)
        arrays[str(name)] = Array(tuple(tensor.shape), dtype, partial(TensorRows, tensor.detach()))
    return arrays


READERS: dict[str, Callable[[Path], dict[str, Array]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
}


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def check_fits_memory(size: int, what: str) -> None:
    """Refuse what would not fit in the memory that is free now.

    Raises:
        DataError: `size` bytes are more than that.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if Path("/proc/meminfo").is_file():
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    if size > free:
        raise DataError(f"{what}: needs {size:,} bytes of memory, and {free:,} are free")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
