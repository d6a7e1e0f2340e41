"""The index file and its manifest: written, read, damaged, and of other format versions."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli import mentions
from vqtool.errors import DataError
from vqtool.runs.index_file import (
    Manifest,
    atomic_write_array,
    atomic_write_indices,
    check_indices_output,
    check_output,
    index_dtype,
    manifest_path,
    read_indices,
)

MANIFEST = Manifest(
    shape=[6, 4],
    dtype="uint8",
    grid=[2, 2],
    codebook_sizes=[10],
    row_shape=[1, 8, 8],
    model_sha256="a" * 64,
    data_sha256="b" * 64,
    shards=[{"name": "x.npy", "rows": 6, "sha256": "b" * 64}],
)
INDICES = np.arange(24, dtype=np.uint8).reshape(6, 4) % 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A valid index file with its manifest."""
    path = tmp_path / "tokens.npy"
    write(path, INDICES, MANIFEST)
    return path


def write(path: Path, indices: np.ndarray, manifest: Manifest) -> None:
    with atomic_write_indices(path, manifest.shape, manifest.dtype, lambda: manifest) as array:
        array[:] = indices


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (1, np.uint8),
        (2, np.uint8),
        (256, np.uint8),
        (257, np.uint16),
        (65536, np.uint16),
        (65537, np.uint32),
        (2**18, np.uint32),
        (2**24, np.uint32),
    ],
)
def test_index_dtype_is_the_smallest_that_holds_the_largest_index(size: int, dtype: type) -> None:
    assert index_dtype((size,)) == dtype
    assert np.iinfo(dtype).max >= size - 1


def test_index_dtype_is_that_of_the_largest_codebook() -> None:
    assert index_dtype((8, 300, 8)) == np.uint16


def test_written_indices_and_manifest_are_read_unchanged(path: Path) -> None:
    array, manifest = read_indices(path)
    assert isinstance(array, np.memmap)
    assert array.dtype == np.uint8
    assert np.array_equal(array, INDICES)
    assert manifest == MANIFEST
    assert names(path.parent) == ["tokens.json", "tokens.npy"]


def test_indices_with_levels_are_read_unchanged(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, shape=[6, 2, 2], codebook_sizes=[10, 300], dtype="uint16")
    indices = INDICES.reshape(6, 2, 2).astype(np.uint16)
    write(tmp_path / "t.npy", indices, manifest)
    assert np.array_equal(read_indices(tmp_path / "t.npy")[0], indices)


def test_index_file_is_a_standard_npy_file(path: Path) -> None:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    assert np.array_equal(array, INDICES)
    assert json.loads(path.with_suffix(".json").read_text()) == asdict(MANIFEST)


def test_manifest_path_has_suffix_json() -> None:
    assert manifest_path(Path("a/my.tokens.npy")) == Path("a/my.tokens.json")


def test_equal_indices_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    again = tmp_path / "other" / "again.npy"
    write(again, INDICES, MANIFEST)
    assert again.read_bytes() == path.read_bytes()
    assert manifest_path(again).read_bytes() == manifest_path(path).read_bytes()


def write_half(path: Path) -> None:
    with atomic_write_indices(path, MANIFEST.shape, MANIFEST.dtype, lambda: MANIFEST) as array:
        array[:3] = 0
        raise KeyboardInterrupt


def test_failed_write_keeps_existing_files(path: Path) -> None:
    before = path.read_bytes(), manifest_path(path).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert (path.read_bytes(), manifest_path(path).read_bytes()) == before
    assert names(path.parent) == ["tokens.json", "tokens.npy"]


def test_failed_write_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "new.npy")
    assert names(tmp_path) == []


def test_check_output_needs_a_new_npy_file_in_an_existing_directory(path: Path) -> None:
    check_output(path.with_name("new.npy"), overwrite=False)
    check_output(path, overwrite=True)
    for wrong, message in [
        (path, r"tokens\.npy: .*exists; .*--overwrite"),
        (path.with_suffix(".bin"), r"tokens\.bin: .*\.npy"),
        (path.parent / "no" / "t.npy", r"t\.npy: directory .*/no "),
        (path / "t.npy", r"t\.npy: .*tokens\.npy .*not a directory"),
    ]:
        with pytest.raises(DataError, match=message):
            check_output(wrong, overwrite=False)


def test_missing_index_file_is_named(path: Path) -> None:
    path.unlink()
    with pytest.raises(DataError, match=r"tokens\.npy: does not exist"):
        read_indices(path)


def test_missing_manifest_is_named(path: Path) -> None:
    manifest_path(path).unlink()
    with pytest.raises(DataError, match=r"tokens\.npy: .*tokens\.json"):
        read_indices(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"5", b"null", b'{"format_version": 1}', b"\xff\xfe", b"[" * 100_000]
)
def test_foreign_content_of_the_manifest_is_refused(content: bytes, path: Path) -> None:
    manifest_path(path).write_bytes(content)
    with pytest.raises(DataError, match=r"tokens\.json: damaged: "):
        read_indices(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("codebook_sizes", []),
        ("codebook_sizes", None),
        ("codebook_sizes", 10),
        ("codebook_sizes", [-3]),
        ("codebook_sizes", ["10"]),
        ("codebook_sizes", [10, 10, 10]),
        ("codebook_sizes", [10**15]),
        ("row_shape", None),
        ("row_shape", ["1", 8, 8]),
        ("row_shape", [1, -8, 8]),
        ("model_sha256", None),
        ("model_sha256", 5),
        ("unique", None),
        ("unique", 1),
        ("extra", 1),
        ("format_version", 1.0),
        ("format_version", True),
    ],
)
def test_manifest_with_an_invalid_field_is_refused(field: str, value: Any, path: Path) -> None:
    manifest_path(path).write_text(json.dumps({**asdict(MANIFEST), field: value}))
    with pytest.raises(DataError, match=r"tokens\.json"):
        read_indices(path)


@pytest.mark.parametrize(
    "field", ["shape", "dtype", "grid", "codebook_sizes", "row_shape", "model_sha256", "data_sha256", "shards"]
)
def test_manifest_with_a_missing_field_is_refused(field: str, path: Path) -> None:
    fields = asdict(MANIFEST)
    del fields[field]
    manifest_path(path).write_text(json.dumps(fields))
    with pytest.raises(DataError, match=rf"tokens\.json: damaged: {field}: missing"):
        read_indices(path)


def test_unique_defaults_to_false(path: Path) -> None:
    fields = asdict(MANIFEST)
    del fields["unique"]
    manifest_path(path).write_text(json.dumps(fields))
    assert read_indices(path)[1] == MANIFEST


@pytest.mark.parametrize(
    "array",
    [INDICES[:5], INDICES.T, INDICES.reshape(6, 2, 2), INDICES.astype(np.uint16), INDICES.astype(np.int8)],
    ids=["fewer", "turned", "folded", "wider", "signed"],
)
def test_manifest_of_another_shape_or_dtype_is_refused(array: np.ndarray, path: Path) -> None:
    np.save(path, array)
    with pytest.raises(DataError) as error:
        read_indices(path)
    assert mentions(
        str(error.value), f"{path}: ... {array.dtype.name} {list(array.shape)} ... tokens.json ... uint8 [6, 4]"
    )


def npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, INDICES)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"junk"),
        lambda path: path.write_bytes(path.read_bytes()[:50]),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: np.save(path, np.array([{}]), allow_pickle=True),
        npz,
    ],
    ids=["empty", "junk", "header cut", "data cut", "pickle", "npz"],
)
def test_damaged_index_file_is_refused(damage: Any, path: Path) -> None:
    damage(path)
    with pytest.raises(DataError, match=r"tokens\.npy: "):
        read_indices(path)


# Format version


def test_manifest_starts_with_its_format_version(path: Path) -> None:
    fields = json.loads(manifest_path(path).read_text())
    assert next(iter(fields)) == "format_version"
    assert fields["format_version"] == 1


@pytest.mark.parametrize("version", [2, 0, "1", [1]])
def test_unknown_format_version_is_refused(version: Any, path: Path) -> None:
    changed = {"format_version": version, "a field of a later version": 1}
    manifest_path(path).write_text(json.dumps({**asdict(MANIFEST), **changed}))
    with pytest.raises(DataError) as error:
        read_indices(path)
    expected = f"tokens.json: format_version: {json.dumps(version)} ... 1; update vqtool ... encode"
    assert mentions(str(error.value), expected)


@pytest.mark.parametrize("fields", [{}, {"shape": [6, 4]}, {**asdict(MANIFEST), "format": "vqtool indices 1"}])
def test_missing_format_version_is_refused(fields: dict[str, Any], path: Path) -> None:
    manifest_path(path).write_text(json.dumps({key: value for key, value in fields.items() if key != "format_version"}))
    with pytest.raises(DataError, match=r"tokens\.json: format_version: missing.*encode"):
        read_indices(path)


# Atomic writes


def test_manifest_without_index_file_can_be_replaced(path: Path) -> None:
    path.unlink()
    check_indices_output(path, overwrite=False)
    manifest_path(path).write_text('{"notes": 1}')
    with pytest.raises(DataError, match=r"tokens\.json: .*exists; .*--overwrite"):
        check_indices_output(path, overwrite=False)


def test_indices_are_not_replaced_if_the_manifest_cannot_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, manifest = read_indices(path)
    before = path.read_bytes(), manifest_path(path).read_bytes()

    def raise_disk_full(value: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vqtool.runs.index_file.to_json", raise_disk_full)
    with (
        pytest.raises(DataError, match=r"tokens\.json: .*No space left"),
        atomic_write_indices(path, manifest.shape, manifest.dtype, lambda: manifest) as array,
    ):
        array[:] = 0
    assert (path.read_bytes(), manifest_path(path).read_bytes()) == before


def test_full_disk_is_reported_before_the_array_is_filled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(handle: int, start: int, size: int) -> None:
        assert size > 1000 * 1000
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", raise_disk_full)
    before = path.read_bytes()
    with (
        pytest.raises(DataError, match=r"tokens\.npy: .*No space left"),
        atomic_write_array(path, (1000, 1000), np.dtype(np.uint8)),
    ):
        pytest.fail("the body was executed")
    assert path.read_bytes() == before
