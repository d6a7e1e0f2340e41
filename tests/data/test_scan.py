"""Scans: finite values, moments of the training rows, hash of the file, and the cache of results."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.data import ROWS
from vqtool.data import scan
from vqtool.data.layout import LayoutName, holds_classes
from vqtool.data.rows import NumpyRows, RowIndices, Rows, TensorRows
from vqtool.data.scan import FileScan, Moments, scan_file, scan_rows
from vqtool.data.tensor_files import open_file
from vqtool.errors import DataError


class CountingRows(Rows):
    """Rows that count calls of `read` and `take`."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self.shape, self.dtype = rows, rows.shape, rows.dtype
        self.reads = 0

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, start: int, stop: int) -> Tensor:
        self.reads += 1
        return self._rows.read(start, stop)

    def take(self, indices: RowIndices) -> Tensor:
        self.reads += 1
        return self._rows.take(indices)


def _scan(
    rows: Rows, layout: LayoutName = "C", moment_rows: NDArray[np.bool_] | bool = True, chunk_bytes: int = 50
) -> FileScan:
    """Scan in chunks of a few rows."""
    return scan_rows("x.npy", rows, layout, moment_rows, io.BytesIO(b"content"), 7, chunk_bytes)


def _saved(folder: Path, array: NDArray[np.generic]) -> Path:
    np.save(folder / "x.npy", array)
    return folder / "x.npy"


def _scan_saved(path: Path) -> tuple[FileScan, int]:
    """Return the scan of a file of vectors, and the number of reads."""
    rows = CountingRows(open_file(path))
    return scan_file(path, rows, "C", None, True), rows.reads


def _check_moments(moments: Moments | None, values: NDArray[np.floating], channel: int | None) -> None:
    """Compare with NumPy's moments of values (n, *row) with channels on row axis `channel`."""
    by_channel = values.reshape(1, -1) if channel is None else np.moveaxis(values, 1 + channel, 0).reshape(3, -1)
    assert moments is not None
    assert moments.count == by_channel.shape[1]
    np.testing.assert_allclose(moments.mean, by_channel.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(np.array(moments.squares) / moments.count, by_channel.var(axis=1), rtol=1e-9)


@pytest.mark.parametrize("chunk", [1, 50, 1000, 1 << 24])
@pytest.mark.parametrize(("layout", "row", "channel"), ROWS)
def test_moments_are_those_of_the_training_rows(
    layout: LayoutName, row: tuple[int, ...], channel: int | None, chunk: int
) -> None:
    random = np.random.default_rng(0)
    array = (1000 + random.standard_normal((20, *row))).astype(np.float32)
    training = random.random(20) < 0.5
    training[:4] = False
    array[~training] *= 50
    moments = _scan(NumpyRows(array), layout, training, chunk).moments
    _check_moments(moments, array[training].astype(np.float64), channel)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "float64"])
def test_moments_without_a_mask_are_those_of_all_rows(dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 100, (30, 3)).astype(dtype)
    _check_moments(_scan(NumpyRows(array)).moments, array.astype(np.float64), 0)


def test_moments_of_bfloat16() -> None:
    rows = torch.randn(30, 3).bfloat16()
    _check_moments(_scan(TensorRows(rows)).moments, rows.double().numpy(), 0)


def test_moments_of_an_empty_selection_are_neutral_in_merge() -> None:
    array = np.random.default_rng(0).random((6, 3), dtype=np.float32)
    empty = _scan(NumpyRows(array), moment_rows=np.zeros(6, dtype=np.bool_)).moments
    moments = _scan(NumpyRows(array)).moments
    assert empty is not None
    assert moments is not None
    assert empty.count == 0
    assert empty.merge(moments) == moments
    assert moments.merge(empty) == moments
    assert empty.merge(empty) == empty


def test_classes_have_bounds_and_no_moments() -> None:
    array = np.random.default_rng(0).integers(5, 90, (40, 6))
    array[17, 2], array[33, 5] = -3, 1234
    scanned = _scan(NumpyRows(array), "T")
    assert (scanned.moments, scanned.smallest, scanned.largest) == (None, -3, 1234)


@pytest.mark.parametrize(("layout", "dtype"), [("C", "int64"), ("T", "float32"), ("HWC", "uint8")])
def test_values_have_moments_and_no_bounds(layout: LayoutName, dtype: str) -> None:
    row = {"C": (3,), "T": (5,), "HWC": (5, 7, 3)}[layout]
    rows = NumpyRows(np.ones((4, *row), dtype=dtype))
    assert not holds_classes(layout, rows.dtype)
    scanned = _scan(rows, layout)
    assert scanned.moments is not None
    assert (scanned.smallest, scanned.largest) == (None, None)


@pytest.mark.parametrize("chunk", [1, 50, 1 << 24])
@pytest.mark.parametrize("bad", [0, 13, 39])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.nan, "NaN"),
        (np.inf, "infinite"),
        (-np.inf, "infinite"),
        (1e39, "too large for float32"),
        (-1e300, "too large for float32"),
    ],
)
def test_first_row_that_is_not_finite_is_named(value: float, kind: str, bad: int, chunk: int) -> None:
    array = np.ones((40, 3))
    array[bad, 1] = array[-1, 2] = value
    with pytest.raises(DataError, match=rf"^x\.npy: row {bad} .*{kind}"):
        _scan(NumpyRows(array), chunk_bytes=chunk)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_float_dtype_is_checked(dtype: torch.dtype) -> None:
    rows = torch.ones(40, 3, dtype=dtype)
    rows[21, 0] = torch.inf
    with pytest.raises(DataError, match=r"row 21 .*infinite"):
        _scan(TensorRows(rows))


def test_infinities_of_opposite_sign_are_found() -> None:
    with pytest.raises(DataError, match=r"row 0 .*infinite"):
        _scan(NumpyRows(np.array([[np.inf, -np.inf]])))


def test_rows_outside_the_mask_are_checked_too() -> None:
    with pytest.raises(DataError, match=r"row 1 .*NaN"):
        _scan(NumpyRows(np.array([[0.0], [np.nan]])), moment_rows=np.array([True, False]))


def test_finite_values_whose_sum_overflows_are_accepted() -> None:
    array = np.full((10, 3), 3e38, dtype=np.float32)
    moments = _scan(NumpyRows(array)).moments
    assert moments is not None
    np.testing.assert_allclose(moments.mean, 3e38, rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 50, 1 << 24])
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_sha256_is_that_of_the_file(tmp_path: Path, name: str, chunk: int) -> None:
    array, path = np.random.default_rng(0).random((37, 3)), tmp_path / name
    np.save(path, array) if name == "x.npy" else np.savez_compressed(path, x=array)
    with path.open("rb") as file:
        scanned = scan_rows(name, open_file(path), "C", True, file, path.stat().st_size, chunk)
    assert scanned.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert scan_file(path, open_file(path), "C", None, True).sha256 == scanned.sha256


def test_second_scan_comes_from_the_cache(tmp_path: Path) -> None:
    path = _saved(tmp_path, np.random.default_rng(0).random((20, 3)))
    first, reads = _scan_saved(path)
    assert reads > 0
    assert _scan_saved(path) == (first, 0)


def test_second_scan_of_classes_comes_from_the_cache(tmp_path: Path) -> None:
    path = _saved(tmp_path, np.arange(12).reshape(4, 3))
    first = scan_file(path, open_file(path), "T", None, True)
    again = CountingRows(open_file(path))
    assert scan_file(path, again, "T", None, True) == first
    assert again.reads == 0
    assert (first.smallest, first.largest) == (0, 11)


def test_another_modification_time_needs_a_new_scan(tmp_path: Path) -> None:
    path = _saved(tmp_path, np.zeros((20, 3)))
    _scan_saved(path)
    before = path.stat().st_mtime_ns
    _saved(tmp_path, np.ones((20, 3)))
    os.utime(path, ns=(before, before + 1))
    scanned, reads = _scan_saved(path)
    assert reads > 0
    assert scanned.moments is not None
    assert scanned.moments.mean == (1.0, 1.0, 1.0)


def test_another_size_needs_a_new_scan(tmp_path: Path) -> None:
    path = _saved(tmp_path, np.zeros((20, 3)))
    _scan_saved(path)
    before = path.stat().st_mtime_ns
    _saved(tmp_path, np.ones((21, 3)))
    os.utime(path, ns=(before, before))
    scanned, reads = _scan_saved(path)
    assert reads > 0
    assert scanned.moments is not None
    assert scanned.moments.mean == (1.0, 1.0, 1.0)


def test_another_layout_or_mask_needs_a_new_scan(tmp_path: Path) -> None:
    path = _saved(tmp_path, np.random.default_rng(0).random((4, 3)))
    masks = [True, np.array([True, True, False, False]), np.array([True, False, True, False]), np.ones(4, dtype=bool)]
    scans = [
        scan_file(path, open_file(path), layout, None, mask)
        for mask in masks
        for layout in ("C", "T")
        for _ in range(2)
    ]
    for index, scanned in enumerate(scans):
        mask, layout = masks[index // 4], ("C", "T")[index // 2 % 2]
        assert scanned.moments == _scan(open_file(path), layout, mask, 1 << 20).moments


def test_another_array_of_the_file_needs_a_new_scan(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.zeros((4, 3)), b=np.ones((4, 3)))
    means = [scan_file(path, open_file(path, key), "C", key, True).moments for key in ("a", "b")]
    assert [moments.mean[0] for moments in means if moments] == [0.0, 1.0]


def test_failed_scan_is_not_cached(tmp_path: Path) -> None:
    path = _saved(tmp_path, np.full((4, 3), np.nan))
    for _ in range(2):
        with pytest.raises(DataError, match=r"row 0 .*NaN"):
            _scan_saved(path)


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_cache_that_cannot_be_written_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / inside))
    path = _saved(tmp_path, np.ones((20, 3)))
    first, second = _scan_saved(path), _scan_saved(path)
    assert first == second
    assert first[1] > 0


def test_full_disk_of_the_cache_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, value: object) -> None:
        raise DataError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(scan, "write_json", refuse)
    scanned, _ = _scan_saved(_saved(tmp_path, np.ones((20, 3))))
    assert scanned.moments is not None
    assert scanned.moments.mean == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "damaged",
    [
        *(b"", b"{", b"[]", b"{}", b"\xff\xfe", b"null", b"3", b'"text"'),
        *(b'{"moments": null}', b'{"moments": "text"}', b'{"moments": {}}'),
        b'{"moments": {"count": 1, "mean": 2, "squares": 3}, "sha256": ""}',
    ],
)
def test_damaged_cache_entry_is_replaced(tmp_path: Path, damaged: bytes) -> None:
    path = _saved(tmp_path, np.random.default_rng(0).random((20, 3)))
    first, _ = _scan_saved(path)
    for entry in Path(os.environ["XDG_CACHE_HOME"], "vqtool").iterdir():
        entry.write_bytes(damaged)
    again, reads = _scan_saved(path)
    assert again == first
    assert reads > 0
    assert _scan_saved(path) == (first, 0)


def test_scan_without_moments_accepts_the_cached_scan_of_any_mask(tmp_path: Path) -> None:
    path = _saved(tmp_path, np.random.default_rng(0).random((20, 3)))
    scanned = scan_file(path, open_file(path), "C", None, np.arange(20) < 10)
    unread = CountingRows(open_file(path))
    assert scan_file(path, unread, "C", None, False).sha256 == scanned.sha256
    assert unread.reads == 0


def test_scan_without_moments_hashes_and_checks_the_file(tmp_path: Path) -> None:
    path = _saved(tmp_path, np.random.default_rng(0).random((20, 3)))
    scanned = scan_file(path, open_file(path), "C", None, False)
    assert scanned.moments is None
    assert scanned.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert scan_file(path, open_file(path), "C", None, True).moments is not None
    path = _saved(tmp_path, np.array([[1.0, 2.0], [3.0, np.nan]]))
    with pytest.raises(DataError, match=r"row 1 .*NaN"):
        scan_file(path, open_file(path), "C", None, False)
