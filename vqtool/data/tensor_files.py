"""Tensor files: what arrays are in one, opened without reading them. Nothing is unpickled but tensors.

A reader maps a path to the arrays inside; the table at the end chooses it by the file's suffix.
"""

import json
import math
import mmap
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from vqtool.data.rows import NumpyRows, Rows, TensorRows
from vqtool.data.spec import DtypeName, dtype_name
from vqtool.errors import DataError, VqtoolError
from vqtool.runtime.files import read_error_reason
from vqtool.runtime.memory import check_fits_memory
from vqtool.runtime.terminal import listed


class Array(NamedTuple):
    """One array of a file: its shape (N, *row), the name of its type, and how to open it."""

    shape: tuple[int, ...]
    dtype: str
    open: Callable[[], Rows]


def open_file(path: Path, key: str | None = None) -> Rows:
    """The rows of a file's array: the one called `key`, or its only one.

    Raises:
        DataError: no such file, not a file of its kind, no or several such arrays, or one that cannot hold samples.
    """
    with _told_as_data_errors(path):
        _check_is_file(path)
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"{path}: unknown file type; expected {listed(READERS)}")
        name, array = _choose(path, reader(path), key)
        _check(f"{path}[{name}]" if name else str(path), array)
        return array.open()


def map_npy(path: Path) -> NDArray[Any]:
    """The array of a .npy file, mapped read-only.

    Raises:
        DataError: no such file, or not a .npy file.
    """
    with _told_as_data_errors(path):
        _check_is_file(path)
        with path.open("rb") as file:
            _check_dtype(str(path), _npy_header(file)[1].name)
        return np.lib.format.open_memmap(path, mode="r")


def _check_is_file(path: Path) -> None:
    path.stat()  # an OSError says why there is no file
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name a file")
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file; copy its contents to a file")


@contextmanager
def _told_as_data_errors(path: Path, name: str = "") -> Iterator[None]:
    what = f"{path}[{name}]" if name else str(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file is an error below; other warnings are irrelevant
            yield
    except VqtoolError:
        raise
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{what}: contains pickled objects, which are not loaded; save a tensor, or a dict of tensors"
        ) from error
    except Exception as error:  # a damaged file can make its parser fail in any way
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"{what}: {read_error_reason(error)}") from error
        detail = _detail(error)
        raise DataError(f"{what}: damaged or truncated {path.suffix} file ({detail}); save the array again") from error


# Arrays of a file that are listed when one is to be chosen.
_MOST_LISTED = 100


def _choose(path: Path, arrays: dict[str, Array], key: str | None) -> tuple[str, Array]:
    listing = [f"  {name or '(unnamed)'}  {array.dtype} {array.shape}" for name, array in arrays.items()]
    if len(listing) > _MOST_LISTED:
        listing[_MOST_LISTED:] = [f"  and {len(listing) - _MOST_LISTED:,} more"]
    if not arrays:
        raise DataError(f"{path}: contains no array")
    if key is not None:
        if key not in arrays:
            hint = "omit --key; " if list(arrays) == [""] else ""
            raise DataError(f"{path}: no array is named {key}; {hint}it contains:", *listing)
        return key, arrays[key]
    if len(arrays) > 1:
        raise DataError(f"{path}: contains several arrays; choose one with --key, or data.key in the config:", *listing)
    return next(iter(arrays.items()))


def _check(what: str, array: Array) -> None:
    _check_dtype(what, array.dtype)
    if not array.shape:
        raise DataError(f"{what}: contains a single number; expected an array (N, ...)")
    if len(array.shape) < 2:
        count = array.shape[0]
        raise DataError(f"{what}: shape ({count},) has no axis after the sample axis; reshape it to ({count}, 1)")
    if 0 in array.shape:
        raise DataError(f"{what}: contains no {'rows' if array.shape[0] == 0 else 'values'} (shape {array.shape})")


def _check_dtype(what: str, dtype: str) -> None:
    if dtype.startswith("torch.sparse"):
        raise DataError(f"{what}: is a sparse tensor ({dtype}); save tensor.to_dense()")
    if dtype not in _DTYPES:
        raise DataError(f"{what}: dtype {dtype} is not supported; expected {listed(_DTYPES)}")


_DTYPES = get_args(DtypeName)


def _read_npy(path: Path) -> dict[str, Array]:
    with path.open("rb") as file:
        shape, dtype = _npy_header(file)
    return {"": Array(shape, dtype.name, lambda: NumpyRows(map_npy(path)))}


def _read_npz(path: Path) -> dict[str, Array]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            name = member.filename.removesuffix(".npy")
            with _told_as_data_errors(path, name):
                with archive.open(member) as file:
                    shape, dtype = _npy_header(file)
                claimed = math.prod(shape) * dtype.itemsize
                if claimed > member.file_size:
                    raise ValueError(f"header declares {claimed:,} bytes, archive contains {member.file_size:,}")
            arrays[name] = Array(shape, dtype.name, _unpacker(path, name, member.file_size))
    return arrays


def _unpacker(path: Path, name: str, size: int) -> Callable[[], Rows]:
    def unpack() -> Rows:
        check_fits_memory(size, f"{path}[{name}]:", "split the file, or save it as .npy")
        with _told_as_data_errors(path, name), np.load(path, allow_pickle=False) as archive:
            return NumpyRows(archive[name])

    return unpack


def _read_safetensors(path: Path) -> dict[str, Array]:
    # The library checks the header against the file; the rows are mapped read-only, for it reads a tensor whole or maps
    # it so that all of it counts as memory.
    with safe_open(path, framework="numpy") as checked:
        names = list(checked.keys())
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    arrays = {}
    for name in names:
        entry = header[name]
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"])
        shape = tuple(entry["shape"])
        arrays[name] = Array(shape, dtype, partial(_map, path, 8 + length + entry["data_offsets"][0], shape, dtype))
    return arrays


def _map(path: Path, offset: int, shape: tuple[int, ...], dtype: str) -> Rows:
    bits = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
    return NumpyRows(np.memmap(path, bits, "r", offset, shape), torch.bfloat16 if dtype == "bfloat16" else None)


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
        raise ValueError("not in the zip format of torch.save")
    content = _load_mapped(path)
    tensors = content if isinstance(content, dict) else {"": content}
    others = [type(value).__name__ for value in tensors.values() if not isinstance(value, Tensor)]
    if len(others) == len(tensors) > 0:
        raise DataError(f"{path}: contains an object of type {others[0]}; expected a tensor, or a dict of tensors")
    arrays = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            _check_held(f"{path}[{name}]" if name else str(path), tensor)
            dtype = dtype_name(tensor.dtype) if tensor.layout == torch.strided else str(tensor.layout)
            arrays[str(name)] = Array(tuple(tensor.shape), dtype, partial(TensorRows, tensor.detach()))
    return arrays


def _check_held(what: str, tensor: Tensor) -> None:
    """Refuse a tensor that repeats what it holds, or holds nothing: few bytes can claim any number of rows."""
    if tensor.layout != torch.strided:
        return  # refused for that
    if tensor.is_meta:
        raise DataError(f"{what}: contains no values (a tensor on device meta); save a tensor with values")
    needed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if needed > stored:
        raise DataError(
            f"{what}: is an expanded view: {needed:,} bytes needed, {stored:,} stored; save tensor.contiguous()"
        )


def _load_mapped(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "Cannot allocate memory" not in str(error):
            raise
    # torch maps a file so that it may be written to in memory, which counts as memory; a shared mapping does not.
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


READERS: dict[str, Callable[[Path], dict[str, Array]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
}


# Characters of another library's message that are shown.
_LONGEST_DETAIL = 120
# Of a .npy file; a few hundred bytes are usual.
_LONGEST_HEADER = 1 << 16


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    start, width = file.tell(), 2 if version == (1, 0) else 4
    length = int.from_bytes(file.read(width), "little")
    if length > _LONGEST_HEADER:  # NumPy would read all of it first
        raise ValueError(f"header of {length:,} bytes is too long")
    file.seek(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _detail(error: Exception) -> str:
    # The error of a tokenizer has a text and a position.
    text = error.args[0] if len(error.args) == 2 and isinstance(error.args[0], str) else str(error)
    return (text.splitlines() or [type(error).__name__])[0][:_LONGEST_DETAIL]
