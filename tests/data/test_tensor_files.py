"""Tensor files of every format are read lazily; files that cannot be read are refused with a message."""

import io
import json
import mmap
import pickle
import re
import resource
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vqtool.data import tensor_files
from vqtool.data.tensor_files import check_fits_memory, open_file
from vqtool.errors import DataError

INTEGERS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
NUMPY_TYPES = ["float16", "float32", "float64", "bool", *INTEGERS]
TORCH_TYPES = [*NUMPY_TYPES, "bfloat16"]

# 1 TiB: more than the memory of a machine, and within the limits of file systems for sparse files.
HUGE_ROWS, HUGE_ROW = 1 << 30, 256

WRITERS: dict[str, Callable[[Path, Tensor], object]] = {
    "plain.npy": lambda path, x: np.save(path, x.numpy()),
    "big-endian.npy": lambda path, x: np.save(path, x.numpy().astype(x.numpy().dtype.newbyteorder(">"))),
    "fortran.npy": lambda path, x: np.save(path, np.asfortranarray(x.numpy())),
    "plain.npz": lambda path, x: np.savez(path, x=x.numpy()),
    "compressed.npz": lambda path, x: np.savez_compressed(path, x=x.numpy()),
    "a.safetensors": lambda path, x: save_file({"x": x}, path),
    "a.pt": lambda path, x: torch.save(x, path),
    "dict.pt": lambda path, x: torch.save({"x": x}, path),
    "a.pth": lambda path, x: torch.save(x, path),
    "UPPER.NPY": lambda path, x: path.write_bytes(_saved_bytes(x)),
}
# Every writer with every dtype of its format.
CASES = [
    (name, dtype) for name in WRITERS for dtype in (NUMPY_TYPES if "np" in name.lower().split(".")[1] else TORCH_TYPES)
]
ONE_PER_FORMAT = ["plain.npy", "plain.npz", "a.safetensors", "a.pt"]


def _saved_bytes(x: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, x.numpy())
    return file.getvalue()


def _tensor(dtype: str) -> Tensor:
    values = torch.tensor([[0, 1, 2], [3, 100, 7], [1, 0, 0], [127, 5, 6], [9, 8, 0]])
    values = values if dtype in ("uint8", "uint16", "uint32", "uint64", "bool") else values - 64
    return values.to(getattr(torch, dtype))


def _error_message(path: Path, key: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        open_file(path, key)
    assert str(path) in str(caught.value)
    return str(caught.value)


def _npy_bytes(header: str, body: bytes = bytes(48)) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def _npy_header(shape: str, descr: str = "<f4") -> str:
    return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"


def _safetensors_bytes(shape: list[int], end: int) -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_rows_have_the_saved_values_and_dtype(tmp_path: Path, name: str, dtype: str) -> None:
    x = _tensor(dtype)
    WRITERS[name](tmp_path / name, x)
    rows = open_file(tmp_path / name)
    assert (len(rows), rows.shape, rows.dtype) == (5, (3,), x.dtype)
    for read, expected in (
        (rows.read(0, 5), x.tolist()),
        (rows.read(1, 3), x.tolist()[1:3]),
        (rows.take(np.array([4, 0, 3, 0])), [x.tolist()[i] for i in (4, 0, 3, 0)]),
    ):
        assert read.dtype == x.dtype
        assert read.tolist() == expected


@pytest.mark.parametrize("name", WRITERS)
def test_rows_keep_their_axes(tmp_path: Path, name: str) -> None:
    x = torch.rand(4, 3, 5, 7)
    WRITERS[name](tmp_path / name, x)
    rows = open_file(tmp_path / name)
    assert rows.shape == (3, 5, 7)
    assert torch.equal(rows.read(0, 4), x)
    assert torch.equal(rows.take(np.array([2, 1])), x[[2, 1]])


def test_transposed_tensor_is_read_by_its_strides(tmp_path: Path) -> None:
    x = torch.rand(3, 5).t()
    torch.save(x, tmp_path / "a.pt")
    assert torch.equal(open_file(tmp_path / "a.pt").read(1, 4), x[1:4])


def test_parameter_is_read_without_gradient(tmp_path: Path) -> None:
    torch.save(torch.nn.Parameter(torch.ones(3, 2)), tmp_path / "a.pt")
    assert not open_file(tmp_path / "a.pt").read(0, 3).requires_grad


def test_npy_larger_than_memory_is_read_row_by_row(tmp_path: Path) -> None:
    with (tmp_path / "huge.npy").open("wb") as file:
        file.write(_npy_bytes(_npy_header(f"({HUGE_ROWS}, {HUGE_ROW})"), b""))
        file.seek((HUGE_ROWS - 1) * HUGE_ROW * 4, io.SEEK_CUR)
        file.write(np.arange(HUGE_ROW, dtype=np.float32).tobytes())
    _check_huge(tmp_path / "huge.npy", last=list(range(HUGE_ROW)))


def test_safetensors_larger_than_memory_is_read_row_by_row(tmp_path: Path) -> None:
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.write(_safetensors_bytes([HUGE_ROWS, HUGE_ROW], HUGE_ROWS * HUGE_ROW * 4))
        file.seek((HUGE_ROWS - 1) * HUGE_ROW * 4, io.SEEK_CUR)
        file.write(np.arange(HUGE_ROW, dtype=np.float32).tobytes())
    _check_huge(tmp_path / "huge.safetensors", last=list(range(HUGE_ROW)))


def test_pt_file_larger_than_memory_is_read_row_by_row(tmp_path: Path) -> None:
    with (tmp_path / "zeros").open("w+b") as file:
        file.truncate(HUGE_ROWS * HUGE_ROW * 4)
        zeros = torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.float32)
    with torch.serialization.skip_data():
        torch.save(zeros.view(HUGE_ROWS, HUGE_ROW), tmp_path / "huge.pt")
    _check_huge(tmp_path / "huge.pt", last=[0] * HUGE_ROW)


def _check_huge(path: Path, last: list[int]) -> None:
    assert path.stat().st_size > 1 << 40
    rows = open_file(path)
    assert (len(rows), rows.shape) == (HUGE_ROWS, (HUGE_ROW,))
    assert rows.take(np.array([HUGE_ROWS - 1, 5])).tolist() == [last, [0] * HUGE_ROW]
    assert rows.read(HUGE_ROWS - 1, HUGE_ROWS).tolist() == [last]


@pytest.mark.parametrize("name", ["several.npz", "several.safetensors", "several.pt"])
class TestSeveralArrays:
    """A container with an array `a` of rows (3, 5) and an array `b` of rows (2,)."""

    A, B = torch.rand(4, 3, 5), torch.arange(6).reshape(3, 2)

    @pytest.fixture
    def path(self, tmp_path: Path, name: str) -> Path:
        path = tmp_path / name
        match path.suffix:
            case ".npz":
                np.savez(path, a=self.A.numpy(), b=self.B.numpy())
            case ".safetensors":
                save_file({"a": self.A, "b": self.B}, path)
            case _:
                torch.save({"a": self.A, "b": self.B}, path)
        return path

    def test_missing_key_lists_names_and_shapes(self, path: Path) -> None:
        message = _error_message(path)
        assert "several arrays" in message
        assert "--key" in message
        assert re.search(r"\ba\b.*float32 \(4, 3, 5\)", message)
        assert re.search(r"\bb\b.*int64 \(3, 2\)", message)

    def test_unknown_key_lists_names_and_shapes(self, path: Path) -> None:
        message = _error_message(path, "c")
        assert "no array is named c" in message
        assert "(4, 3, 5)" in message
        assert "(3, 2)" in message

    def test_key_selects_the_array(self, path: Path) -> None:
        assert torch.equal(open_file(path, "a").read(0, 4), self.A)
        assert torch.equal(open_file(path, "b").read(0, 3), self.B)


def test_unsupported_array_beside_the_selected_one_is_ignored(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", bad=np.array([[{}]], dtype=object), good=np.ones((2, 3)))
    assert open_file(tmp_path / "a.npz", "good").read(0, 2).tolist() == [[1.0] * 3] * 2


def test_key_for_an_unnamed_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3), dtype=np.float32))
    assert re.search(
        r"named x; .*--key.*\s+\(unnamed\)\s+float32 \(2, 3\)",
        _error_message(tmp_path / "a.npy", "x"),
    )


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.safetensors", "a.pt", "a.txt"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    assert "does not exist" in _error_message(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt", "a", "a.npy.gz", "a.h5"])
def test_unknown_suffix_lists_the_known_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    message = _error_message(tmp_path / name)
    assert all(suffix in message for suffix in (".npy", ".npz", ".safetensors", ".pt", ".pth"))


@pytest.mark.parametrize("name", ONE_PER_FORMAT)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 3, 4)])
def test_empty_array_is_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    WRITERS[name](tmp_path / name, torch.zeros(shape))
    what = "rows" if shape[0] == 0 else "values"
    assert f"no {what} (shape {shape})" in _error_message(tmp_path / name)


@pytest.mark.parametrize("name", ONE_PER_FORMAT)
@pytest.mark.parametrize("shape", [(), (3,)])
def test_array_of_less_than_two_axes_is_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    WRITERS[name](tmp_path / name, torch.zeros(shape))
    message = _error_message(tmp_path / name)
    assert ("shape (3,) has no axis" in message and "(3, 1)" in message) if shape else "a single number" in message


@pytest.mark.parametrize(
    ("array", "name"),
    [
        (np.zeros((3, 2), dtype=np.complex64), "complex64"),
        (np.zeros((3, 2), dtype="U5"), "str"),
        (np.zeros((3, 2), dtype="S5"), "bytes"),
        (np.zeros((3, 2), dtype=[("a", "f4")]), "void"),
        (np.zeros((3, 2), dtype="M8[s]"), "datetime64"),
        (np.full((3, 2), None), "object"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_unsupported_numpy_dtype_is_named(tmp_path: Path, suffix: str, array: np.ndarray[Any, Any], name: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        np.savez(path, x=array)
    assert re.search(rf"dtype {name}\S* .*float32", _error_message(path))


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (torch.zeros(3, 2, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, 2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.eye(3).to_sparse(), "sparse_coo"),
    ],
)
def test_unsupported_torch_dtype_is_named(tmp_path: Path, tensor: Tensor, name: str) -> None:
    torch.save(tensor, tmp_path / "a.pt")
    expected = r"sparse_coo\b.*to_dense" if tensor.is_sparse else rf"dtype {name}\b"
    assert re.search(expected, _error_message(tmp_path / "a.pt"))


def test_unsupported_safetensors_dtype_is_named(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(3, 2).to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    assert "dtype F8_E4M3 " in _error_message(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [3, "text", [torch.ones(2, 2)], {"epoch": 3}])
def test_pt_file_without_tensors_is_refused_with_its_type(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert re.search(
        r"type (int|str|list)\b.*dict of tensors",
        _error_message(tmp_path / "a.pt"),
    )


def test_pt_file_in_the_legacy_format_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3, 2), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert "zip format of torch.save" in _error_message(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["empty.npz", "empty.pt"])
def test_empty_container_is_refused(tmp_path: Path, name: str) -> None:
    if name == "empty.npz":
        np.savez(tmp_path / name)
    else:
        torch.save({}, tmp_path / name)
    assert "contains no array" in _error_message(tmp_path / name)


class _Harmless:
    """A picklable class without side effects."""


class _Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.target), "w"))


def _save_pickle(path: Path, content: object) -> None:
    match path.name:
        case "raw.pt" | "raw.npy" | "raw.npz":
            path.write_bytes(pickle.dumps(content))
        case "object.npy":
            np.save(path, np.array([[content]], dtype=object), allow_pickle=True)
        case "object.npz":
            np.savez(path, x=np.array([[content]], dtype=object))
        case "dict.pt":
            torch.save({"x": torch.ones(3, 2), "y": content}, path)
        case _:
            torch.save(content, path)


PICKLES = ["a.pt", "dict.pt", "a.pth", "raw.pt", "raw.npy", "raw.npz", "object.npy", "object.npz"]


@pytest.mark.parametrize("key", [None, "x"])
@pytest.mark.parametrize("name", PICKLES)
def test_pickle_is_refused_and_not_executed(tmp_path: Path, name: str, key: str | None) -> None:
    _save_pickle(tmp_path / name, _Trap(tmp_path / "executed"))
    _error_message(tmp_path / name, key)
    assert not (tmp_path / "executed").exists()


def test_trap_creates_its_file_when_it_is_unpickled(tmp_path: Path) -> None:
    _save_pickle(tmp_path / "a.pt", _Trap(tmp_path / "executed"))
    torch.load(tmp_path / "a.pt", weights_only=False).close()
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["a.pt", "dict.pt", "a.pth"])
def test_message_for_a_pickled_object_omits_the_advice_of_torch_to_load_it(tmp_path: Path, name: str) -> None:
    _save_pickle(tmp_path / name, _Harmless())
    message = _error_message(tmp_path / name)
    assert "\x1b" not in message
    assert "can still be loaded" not in message
    assert "tensor" in message


@pytest.mark.parametrize("name", ["plain.npy", "fortran.npy", "plain.npz", "compressed.npz", "a.safetensors", "a.pt"])
@pytest.mark.parametrize("length", [0, 5, 40, -1, -8, -100])
def test_truncated_file_is_refused(tmp_path: Path, name: str, length: int) -> None:
    WRITERS[name](tmp_path / name, torch.rand(200, 3))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:length])
    assert re.search(r"damaged or truncated \.\w+ file \(.+\)", _error_message(tmp_path / name))


@pytest.mark.parametrize("name", ONE_PER_FORMAT)
def test_random_bytes_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(1000))
    assert re.search(r"damaged or truncated \.\w+ file \(.+\)", _error_message(tmp_path / name))


@pytest.mark.parametrize("name", ["plain.npz", "compressed.npz"])
def test_damaged_archive_is_refused(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, torch.rand(200, 3))
    content = bytearray((tmp_path / name).read_bytes())
    content[600:700] = bytes(100)
    (tmp_path / name).write_bytes(content)
    assert "damaged or truncated .npz file" in _error_message(tmp_path / name)


def test_archive_damaged_at_its_start_is_refused(tmp_path: Path) -> None:
    WRITERS["compressed.npz"](tmp_path / "a.npz", torch.rand(200, 3))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[60:100] = b"\xff" * 40
    (tmp_path / "a.npz").write_bytes(content)
    assert "damaged or truncated .npz file" in _error_message(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    "header",
    [
        _npy_header("(3, 4"),
        _npy_header("(-3, 4)"),
        _npy_header("(-3, -4)"),
        _npy_header("(1000000000000000000000000, 4)"),
        _npy_header("(True, 4)"),
        _npy_header("(3, 4)", descr="nonsense"),
        "{[]: 1}",
        "",
    ],
)
def test_invalid_npy_header_is_refused(tmp_path: Path, suffix: str, header: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        path.write_bytes(_npy_bytes(header))
    else:
        _write_npz(path, _npy_bytes(header))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # NumPy parses some of these as headers written by Python 2.
        _error_message(path)


def test_npy_header_that_declares_more_than_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(_npy_bytes(_npy_header("(1000000000000000, 4)")))
    assert "damaged or truncated .npy file" in _error_message(tmp_path / "a.npy")


def test_npz_header_that_declares_petabytes_is_refused(tmp_path: Path) -> None:
    _write_npz(tmp_path / "a.npz", _npy_bytes(_npy_header("(1000000000000000, 4)")))
    message = _error_message(tmp_path / "a.npz")
    assert "a.npz[x]: damaged" in message
    assert "16,000,000,000,000,000 bytes" in message


def test_npz_archive_that_declares_petabytes_is_refused(tmp_path: Path) -> None:
    _write_npz(tmp_path / "a.npz", _npy_bytes(_npy_header("(1000000000000000, 4)")), declared=20 * 10**15)
    assert re.search(r"\[x\]: .*20,000,000.0 GB of memory", _error_message(tmp_path / "a.npz"))


def _write_npz(path: Path, content: bytes, declared: int | None = None) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)
        if declared:
            archive.infolist()[0].file_size = declared


def test_npz_larger_than_free_memory_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int, what: str, advice: str) -> None:
        raise DataError(f"{what} needs {size:,}")

    monkeypatch.setattr(tensor_files, "check_fits_memory", refuse)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 1000), dtype=np.float32))
    assert re.search(r"\[x\]: needs 4,000,\d+$", _error_message(tmp_path / "a.npz"))


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_small_sizes_fit_memory(size: int) -> None:
    check_fits_memory(size, "x", "lower y")


def test_a_petabyte_does_not_fit_memory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^x .*1,000,000\.0 GB of memory.* [\d,.]+ [GM]B .*; lower y$"):
        check_fits_memory(10**15, "x", "lower y")


def test_safetensors_header_that_declares_more_than_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(_safetensors_bytes([10**12, 4], 16 * 10**12) + bytes(48))
    assert "damaged or truncated .safetensors file" in _error_message(tmp_path / "a.safetensors")


def test_directory_with_a_tensor_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npy").mkdir()
    assert "is a directory" in _error_message(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(1 << 50, 4), torch.zeros(5, 1).expand(5, 2), torch.zeros(1 << 50, 4, device="meta")],
    ids=["one number", "columns", "meta"],
)
@pytest.mark.parametrize("inside", [False, True])
def test_expanded_and_meta_tensors_are_refused(tmp_path: Path, tensor: Tensor, inside: bool) -> None:
    torch.save({"x": tensor} if inside else tensor, tmp_path / "a.pt")
    expected = f"{tensor.numel() * 4:,} bytes.* \\d+ stored"
    if tensor.is_meta:
        expected = "no values .*device meta"
    assert re.search(rf"a.pt(\[x\])?: .*{expected}", _error_message(tmp_path / "a.pt"))


def test_slice_of_a_tensor_is_read_with_its_offset(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).reshape(4, 3)
    torch.save(tensor[1:3, 1:], tmp_path / "a.pt")
    assert open_file(tmp_path / "a.pt").read(0, 2).tolist() == [[4.0, 5.0], [7.0, 8.0]]


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_npy_header_longer_than_64_kib_is_refused(tmp_path: Path, suffix: str) -> None:
    content = b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 30) + bytes(100)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content) if suffix == ".npy" else _write_npz(path, content)
    assert "header of 1,073,741,824 bytes" in _error_message(path)


def test_memory_limit_of_the_process_bounds_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = (pages + 4096) * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    check_fits_memory(1 << 20, "x", "lower y")
    with pytest.raises(DataError, match=r"x .*1\.1 GB of memory"):
        check_fits_memory(1 << 30, "x", "lower y")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (0, 0))
    with pytest.raises(DataError, match=r"0\.0 MB of memory.* 0\.0 MB "):
        check_fits_memory(1, "x", "lower y")


def test_first_100_of_many_arrays_are_listed(tmp_path: Path) -> None:
    torch.save({f"x{i}": torch.ones(2, 1) for i in range(150)}, tmp_path / "a.pt")
    lines = _error_message(tmp_path / "a.pt").splitlines()
    assert (len(lines), lines[-1]) == (102, "  and 50 more")
