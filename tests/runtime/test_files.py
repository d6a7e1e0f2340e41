"""Atomic writes: a file is complete, or is not there."""

import os
from pathlib import Path

import pytest

from vqtool.errors import DataError
from vqtool.runtime.files import atomic_write, write_json


def _write(path: Path, text: str, error: BaseException | None = None) -> None:
    with atomic_write(path) as temp:
        temp.write_text(text)
        if error:
            raise error


def test_file_exists_only_after_the_block(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with atomic_write(path) as temp:
        temp.write_text("new")
        assert temp.parent == tmp_path
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_error_is_raised_and_leaves_no_file(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        _write(tmp_path / "out.txt", "half", error)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_error_keeps_the_old_content(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises((type(error), DataError)):
        _write(path, "half", error)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_success_replaces_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old and longer")
    _write(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o000])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        _write(tmp_path / "out.txt", "new")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "out.txt").stat().st_mode & 0o777 == 0o666 & ~mask


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent/out\.txt: .*directory \S*/absent "):
        _write(tmp_path / "absent" / "out.txt", "new")


def test_full_disk_is_reported_with_the_final_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/out\.txt: .*No space left"):
        _write(tmp_path / "out.txt", "half", OSError(28, "No space left on device"))


def test_incomplete_write_of_numpy_is_reported_with_its_numbers(tmp_path: Path) -> None:
    # NumPy's error when the disk is full has a text, but no errno.
    with pytest.raises(DataError, match=r"/out\.txt: .*\b7 of 100\b.*disk"):
        _write(tmp_path / "out.txt", "half", OSError("100 requested and 7 written"))


def test_directory_with_the_name_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.txt").mkdir()
    with pytest.raises(DataError, match=r"out\.txt: is a directory"):
        _write(tmp_path / "out.txt", "new")
    assert os.listdir(tmp_path) == ["out.txt"]


def test_equal_values_give_equal_json(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        write_json(tmp_path / name, {"rows": [1, 2.5, None]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_text() == '{\n  "rows": [\n    1,\n    2.5,\n    null\n  ]\n}\n'


def test_json_with_nan_is_refused_and_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []
