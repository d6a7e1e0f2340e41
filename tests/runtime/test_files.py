"""Files appear whole under their name, or not at all."""

import os
from pathlib import Path

import pytest

from vqtool.errors import DataError
from vqtool.runtime.files import atomic_write, write_json


def _write(path: Path, text: str, fault: BaseException | None = None) -> None:
    with atomic_write(path) as part:
        part.write_text(text)
        if fault:
            raise fault


def test_the_file_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with atomic_write(path) as part:
        part.write_text("new")
        assert part.parent == tmp_path
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("fault", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_a_fault_leaves_nothing_behind_and_goes_on(tmp_path: Path, fault: BaseException) -> None:
    with pytest.raises(type(fault)):
        _write(tmp_path / "out.txt", "half", fault)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fault", [ValueError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_fault_leaves_the_old_content(tmp_path: Path, fault: BaseException) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises((type(fault), DataError)):
        _write(path, "half", fault)
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


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent/out\.txt: directory \S*absent does not exist; create it"):
        _write(tmp_path / "absent" / "out.txt", "new")


def test_a_full_disk_is_told_with_the_final_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"out\.txt: cannot be written: No space left"):
        _write(tmp_path / "out.txt", "half", OSError(28, "No space left on device"))


def test_a_short_write_is_told_in_its_own_words(tmp_path: Path) -> None:
    # What NumPy raises when the disk fills up; such an error has a text, but no number.
    with pytest.raises(DataError, match=r"out\.txt: cannot be written: only 7 of 100 values written; .*disk space"):
        _write(tmp_path / "out.txt", "half", OSError("100 requested and 7 written"))


def test_a_folder_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.txt").mkdir()
    with pytest.raises(DataError, match=r"out\.txt: is a directory"):
        _write(tmp_path / "out.txt", "new")
    assert os.listdir(tmp_path) == ["out.txt"]


def test_json_is_the_same_bytes_for_the_same_value(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        write_json(tmp_path / name, {"rows": [1, 2.5, None]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_text() == '{\n  "rows": [\n    1,\n    2.5,\n    null\n  ]\n}\n'


def test_json_refuses_nan_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []
