"""Tensor files: list the arrays of a file and open the rows of one of them, without unpickling anything but tensors.

Rows are memory-mapped, except those of .npz files, which are read into memory. A reader maps a path to the arrays of
the file, by name; `READERS`, at the end, selects the reader by the file's suffix.
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

from vqtool.data.layout import DtypeName, dtype_name
from vqtool.data.rows import NumpyRows, Rows, TensorRows
from vqtool.errors import DataError, VqtoolError
from vqtool.runtime.files import read_error_reason
from vqtool.runtime.memory import check_fits_memory
from vqtool.runtime.terminal import join_or

# Arrays listed in a message.
_MAX_LISTED_ARRAYS = 100
# Characters shown of another library's error message.
_MAX_DETAIL_CHARS = 120
# Longest accepted header of a .npy file. Real headers have a few hundred bytes.
_MAX_NPY_HEADER_BYTES = 1 << 16
_SUPPORTED_DTYPES = get_args(DtypeName)


class StoredArray(NamedTuple):
    """One array of a file: shape, name of the dtype (or layout, if sparse), and a function that opens its rows.

    Shape and dtype come from the header of the file and may be invalid; `_check_array` checks them.
    """

    shape: tuple[int, ...]
    dtype: str
    open: Callable[[], Rows]


def open_file(path: Path, key: str | None = None) -> Rows:
    """Open the rows of an array in a file.

    Args:
        path: the file.
        key: name of the array; None: the only array of the file.

    Raises:
        DataError: the file cannot be read, has no array of this name, or has several and `key` is None; or the array
            has an unsupported dtype, fewer than two axes, or an axis of length 0.
    """
    with _as_data_errors(path):
        _check_is_file(path)
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"{path}: unknown file type; expected {join_or(READERS)}")
        name, array = _select_array(path, reader(path), key)
        _check_array(_array_name(path, name), array)
        return array.open()


def map_npy(path: Path) -> NDArray[Any]:
    """Memory-map the array of a .npy file, of any shape, read-only.

    Raises:
        DataError: the file cannot be read, is not a .npy file, or its dtype is not supported.
    """
    with _as_data_errors(path):
        _check_is_file(path)
        with path.open("rb") as file:
            _check_dtype(str(path), _read_npy_header(file)[1].name)
        return np.lib.format.open_memmap(path, mode="r")


def _array_name(path: Path, name: str) -> str:
    return f"{path}[{name}]" if name else str(path)


def _check_is_file(path: Path) -> None:
    """Raise an OSError if there is nothing at `path`, and a DataError if it is not a regular file."""
    path.stat()  # its OSError gives the reason, which is_file() hides
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name a file")
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file; copy its contents to a file")


@contextmanager
def _as_data_errors(path: Path, name: str = "") -> Iterator[None]:
    """Convert exceptions of the body into a DataError that names the file and the array `name`; suppress warnings.

    The program's own errors (VqtoolError) pass unchanged.
    """
    subject = _array_name(path, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file is an error below; other warnings are irrelevant
            yield
    except VqtoolError:
        raise
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{subject}: contains pickled objects, which are not loaded; save a tensor, or a dict of tensors"
        ) from error
    except Exception as error:  # a parser can raise anything on a damaged file
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"{subject}: {read_error_reason(error)}") from error
        # The arguments of tokenize.TokenError are a text and a position.
        text = error.args[0] if len(error.args) == 2 and isinstance(error.args[0], str) else str(error)
        detail = (text.splitlines() or [type(error).__name__])[0][:_MAX_DETAIL_CHARS]
        raise DataError(
            f"{subject}: damaged or truncated {path.suffix} file ({detail}); save the array again"
        ) from error


def _select_array(path: Path, arrays: dict[str, StoredArray], key: str | None) -> tuple[str, StoredArray]:
    """Return name and array for `key`, or the only array for None; the name is "" in formats without names.

    Raises:
        DataError: there is no such array, or `key` is None and there are several; lists the arrays of the file.
    """
    listing = [f"  {name or '(unnamed)'}  {array.dtype} {array.shape}" for name, array in arrays.items()]
    if len(listing) > _MAX_LISTED_ARRAYS:
        listing[_MAX_LISTED_ARRAYS:] = [f"  and {len(listing) - _MAX_LISTED_ARRAYS:,} more"]
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


def _check_array(subject: str, array: StoredArray) -> None:
    """Raise a DataError if the dtype is not supported, or if there are fewer than two axes or an axis of length 0."""
    _check_dtype(subject, array.dtype)
    if not array.shape:
        raise DataError(f"{subject}: contains a single number; expected an array (N, ...)")
    if len(array.shape) < 2:
        count = array.shape[0]
        raise DataError(f"{subject}: shape ({count},) has no axis after the sample axis; reshape it to ({count}, 1)")
    if 0 in array.shape:
        raise DataError(f"{subject}: contains no {'rows' if array.shape[0] == 0 else 'values'} (shape {array.shape})")


def _check_dtype(subject: str, dtype: str) -> None:
    if dtype.startswith("torch.sparse"):
        raise DataError(f"{subject}: is a sparse tensor ({dtype}); save tensor.to_dense()")
    if dtype not in _SUPPORTED_DTYPES:
        raise DataError(f"{subject}: dtype {dtype} is not supported; expected {join_or(_SUPPORTED_DTYPES)}")


# .npy


def _read_npy(path: Path) -> dict[str, StoredArray]:
    with path.open("rb") as file:
        shape, dtype = _read_npy_header(file)
    return {"": StoredArray(shape, dtype.name, lambda: NumpyRows(map_npy(path)))}


def _read_npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of the array in a .npy file, a binary file object at position 0."""
    version = np.lib.format.read_magic(file)
    start, width = file.tell(), 2 if version == (1, 0) else 4
    length = int.from_bytes(file.read(width), "little")
    if length > _MAX_NPY_HEADER_BYTES:  # NumPy would read the whole header before it checks the length
        raise ValueError(f"header of {length:,} bytes is too long")
    file.seek(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


# .npz


def _read_npz(path: Path) -> dict[str, StoredArray]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            name = member.filename.removesuffix(".npy")
            with _as_data_errors(path, name):
                with archive.open(member) as file:
                    shape, dtype = _read_npy_header(file)
                declared = math.prod(shape) * dtype.itemsize
                if declared > member.file_size:
                    raise ValueError(f"header declares {declared:,} bytes, archive contains {member.file_size:,}")
            arrays[name] = StoredArray(shape, dtype.name, partial(_unpack_npz, path, name, member.file_size))
    return arrays


def _unpack_npz(path: Path, name: str, size: int) -> Rows:
    """Read the array `name` of an archive into memory.

    Raises:
        DataError: its `size` in bytes exceeds the free memory, or it cannot be read.
    """
    check_fits_memory(size, f"{path}[{name}]:", "split the file, or save it as .npy")
    with _as_data_errors(path, name), np.load(path, allow_pickle=False) as archive:
        return NumpyRows(archive[name])


# .safetensors

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


def _read_safetensors(path: Path) -> dict[str, StoredArray]:
    # The library only validates the header. It would read a tensor whole, or map it in a way that counts as memory of
    # the process; the rows are mapped read-only below instead.
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
        offset = 8 + length + entry["data_offsets"][0]
        arrays[name] = StoredArray(shape, dtype, partial(_map_safetensors, path, offset, shape, dtype))
    return arrays


def _map_safetensors(path: Path, offset: int, shape: tuple[int, ...], dtype: str) -> Rows:
    # NumPy has no bfloat16; its bits are mapped as uint16.
    stored = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
    return NumpyRows(np.memmap(path, stored, "r", offset, shape), torch.bfloat16 if dtype == "bfloat16" else None)


# .pt, .pth


def _read_torch(path: Path) -> dict[str, StoredArray]:
    if not zipfile.is_zipfile(path):
        raise ValueError("not in the zip format of torch.save")
    content = _load_torch_mapped(path)
    values = content if isinstance(content, dict) else {"": content}
    other_types = [type(value).__name__ for value in values.values() if not isinstance(value, Tensor)]
    if len(other_types) == len(values) > 0:
        raise DataError(f"{path}: contains an object of type {other_types[0]}; expected a tensor, or a dict of tensors")
    arrays = {}
    for name, tensor in values.items():
        if isinstance(tensor, Tensor):
            strided = tensor.layout == torch.strided
            if strided:
                _check_storage(_array_name(path, name), tensor)
            dtype = dtype_name(tensor.dtype) if strided else str(tensor.layout)
            arrays[str(name)] = StoredArray(tuple(tensor.shape), dtype, partial(TensorRows, tensor.detach()))
    return arrays


def _check_storage(subject: str, tensor: Tensor) -> None:
    """Raise a DataError for meta tensors and expanded views, by which a small file can declare any number of rows."""
    if tensor.is_meta:
        raise DataError(f"{subject}: contains no values (a tensor on device meta); save a tensor with values")
    needed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if needed > stored:
        raise DataError(
            f"{subject}: is an expanded view: {needed:,} bytes needed, {stored:,} stored; save tensor.contiguous()"
        )


def _load_torch_mapped(path: Path) -> Any:
    """Load a file of torch.save, with memory-mapped tensors; other objects than tensors and plain containers fail."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "Cannot allocate memory" not in str(error):
            raise
    # By default torch makes a private writable mapping, which counts as memory of the process; a shared one does not.
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


# A new format is one reader above and one entry here.
READERS: dict[str, Callable[[Path], dict[str, StoredArray]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
}
