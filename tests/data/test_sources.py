"""Sources: a file, a directory, a glob or synthetic settings give rows, shards and scans."""

import hashlib
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from vqtool.data import sources
from vqtool.data.settings import SyntheticSettings
from vqtool.data.sources import FileSource, GeneratedSource, Shard
from vqtool.data.synthetic import (
    GaussianSettings,
    MixtureSettings,
    SinusoidsSettings,
    SyntheticSource,
    TexturesSettings,
    TilesSettings,
)
from vqtool.errors import DataError

ARRAY = np.random.default_rng(0).random((12, 3), dtype=np.float32)
SIZES = {"a.npy": 5, "b.safetensors": 1, "c.npz": 4, "d.pt": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """ARRAY in four shards, beside files that are not shards."""
    folder = tmp_path / "shards"
    folder.mkdir()
    pieces = dict(zip(SIZES, np.split(ARRAY, np.cumsum(list(SIZES.values()))[:-1]), strict=True))
    torch.save(torch.from_numpy(pieces["d.pt"].copy()), folder / "d.pt")
    np.savez(folder / "c.npz", pieces["c.npz"])
    save_file({"x": torch.from_numpy(pieces["b.safetensors"].copy())}, folder / "b.safetensors")
    np.save(folder / "a.npy", pieces["a.npy"])
    np.save(folder / ".hidden.npy", np.zeros((3, 99)))
    (folder / "README.txt").write_text("not a shard")
    (folder / "aa").mkdir()
    return folder


def _save(path: Path, array: NDArray[np.generic]) -> FileSource:
    np.save(path, array)
    return FileSource(str(path))


def _mentions(caught: pytest.ExceptionInfo[DataError], *texts: object) -> bool:
    return all(str(text) in str(caught.value) for text in texts)


@pytest.mark.parametrize("pattern", ["", "/", "/*.[nsp]*", "/*"])
def test_files_of_a_directory_or_glob_are_concatenated_in_name_order(folder: Path, pattern: str) -> None:
    source = FileSource(f"{folder}{pattern}")
    assert (len(source.rows), source.rows.shape, source.rows.dtype) == (12, (3,), torch.float32)
    np.testing.assert_array_equal(source.rows.read(0, 12).numpy(), ARRAY)
    assert [(shard.name, shard.rows) for shard in source.scan("C").shards] == list(SIZES.items())


@pytest.mark.parametrize("indices", [[11, 0, 5, 4, 6, 9, 10], [7, 7, 1], list(range(11, -1, -1)), []])
def test_rows_are_taken_across_shards_in_any_order(folder: Path, indices: list[int]) -> None:
    index = np.array(indices, dtype=np.int64)
    np.testing.assert_array_equal(FileSource(str(folder)).rows.take(index).numpy(), ARRAY[index])


def test_glob_reads_only_matching_files(folder: Path) -> None:
    np.testing.assert_array_equal(FileSource(f"{folder}/[bd].*").rows.read(0, 3).numpy(), ARRAY[[5, 10, 11]])


def test_glob_can_span_directories(tmp_path: Path) -> None:
    for number in (1, 0, 2):
        (tmp_path / f"part{number}").mkdir()
        np.save(tmp_path / f"part{number}" / "x.npy", np.full((2, 1), float(number)))
    expected = [[0.0], [0.0], [1.0], [1.0], [2.0], [2.0]]
    assert FileSource(f"{tmp_path}/part*/x.npy").rows.read(0, 6).tolist() == expected
    assert FileSource(f"{tmp_path}/**/x.npy").rows.read(0, 6).tolist() == expected


def test_existing_file_with_brackets_in_its_name_is_not_a_glob(tmp_path: Path) -> None:
    assert _save(tmp_path / "x[1].npy", ARRAY).rows.read(0, 12).shape == (12, 3)


def test_suffixes_are_case_insensitive(tmp_path: Path) -> None:
    _save(tmp_path / "x.npy", ARRAY)
    (tmp_path / "x.npy").rename(tmp_path / "X.NPY")
    assert len(FileSource(str(tmp_path)).rows) == 12


def test_key_selects_the_array_in_every_shard(tmp_path: Path) -> None:
    for number in (0, 1):
        np.savez(tmp_path / f"{number}.npz", a=np.full((2, 1), number), b=np.zeros((7, 7)))
    assert FileSource(str(tmp_path), "a").rows.read(0, 4).tolist() == [[0], [0], [1], [1]]


@pytest.mark.parametrize("other", [np.zeros((2, 4), dtype=np.float32), np.zeros((2, 3)), np.zeros((2, 3, 1), "f4")])
def test_shards_of_different_shape_or_dtype_are_refused_with_both(folder: Path, other: NDArray[np.generic]) -> None:
    np.save(folder / "bad.npy", other)
    with pytest.raises(DataError) as caught:
        FileSource(str(folder))
    assert _mentions(caught, folder / "bad.npy", folder / "a.npy")
    pairs = {"shape": (other.shape[1:], (3,)), "dtype": (other.dtype.name, "float32")}
    for name, (actual, expected) in pairs.items():
        shown = [f"{name} {value}" in str(caught.value) for value in (actual, expected)]
        assert shown == [str(actual) != str(expected)] * 2


@pytest.mark.parametrize("path", ["absent.npy", "absent/x.npy"])
def test_missing_file_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=rf"{path}: does not exist"):
        FileSource(str(tmp_path / path))


@pytest.mark.parametrize("pattern", ["", "/*.npy", "/x[0-9].pt"])
def test_empty_directory_and_glob_without_match_are_refused(tmp_path: Path, pattern: str) -> None:
    (tmp_path / ".hidden.npy").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        FileSource(f"{tmp_path}{pattern}")
    if pattern:
        assert _mentions(caught, f"{tmp_path}{pattern}: ", "no file")
    else:
        assert _mentions(caught, f"{tmp_path}: ", ".npy, .npz, .safetensors, .pt or .pth")


def test_glob_of_unknown_suffixes_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        FileSource(f"{tmp_path}/*.csv")
    assert _mentions(caught, f"{tmp_path}/*.csv: ", ".npy, .npz, .safetensors, .pt or .pth")


def test_sha256_of_one_shard_is_that_of_the_file(tmp_path: Path) -> None:
    source, digest = _save(tmp_path / "x.npy", ARRAY), hashlib.sha256((tmp_path / "x.npy").read_bytes()).hexdigest()
    scan = source.scan("C")
    assert scan.shards == (Shard("x.npy", 12, digest),)
    assert scan.sha256 == digest


def test_sha256_of_several_shards_is_that_of_their_digests(folder: Path) -> None:
    scan = FileSource(str(folder)).scan("C")
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SIZES]
    assert [shard.sha256 for shard in scan.shards] == digests
    assert scan.sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()


def test_moments_are_those_of_the_training_rows_of_all_shards(folder: Path) -> None:
    training = np.isin(np.arange(12), [0, 3, 6, 7, 8, 11])
    moments = FileSource(str(folder)).scan("C", training).moments
    assert moments is not None
    assert moments.count == 6
    np.testing.assert_allclose(moments.mean, ARRAY[training].astype("f8").mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(np.array(moments.squares) / 6, ARRAY[training].astype("f8").var(axis=0), rtol=1e-10)


def test_nan_is_refused_with_shard_and_row(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 2)))
    np.save(tmp_path / "b.npy", np.array([[0.0, 0.0], [0.0, np.nan]]))
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/b.npy: row 1 ") + ".*NaN"):
        FileSource(str(tmp_path)).scan("C")


@pytest.mark.parametrize("row", [0, 3, 6])
def test_first_row_with_a_negative_class_is_named(tmp_path: Path, row: int) -> None:
    array = np.arange(21).reshape(7, 3)
    array[row, 1] = array[6, 2] = -1
    np.save(tmp_path / "a.npy", array[:2])
    np.save(tmp_path / "b.npy", array[2:])
    message = rf": row {row} .*negative.*layout T .*data\.layout.* C$"
    with pytest.raises(DataError, match=message):
        FileSource(str(tmp_path)).scan("T")


def test_huge_unsigned_integer_is_not_reported_as_negative(tmp_path: Path) -> None:
    source = _save(tmp_path / "x.npy", np.full((3, 2), 1 << 63, dtype=np.uint64))
    with pytest.raises(DataError, match=r": row 0 .*class ") as caught:
        source.check_classes(source.scan("T"), 1 << 20)
    assert "negative" not in str(caught.value)


def test_negative_integers_are_accepted_in_a_layout_with_channels(tmp_path: Path) -> None:
    moments = _save(tmp_path / "x.npy", np.array([[-3, 1], [-5, 1]])).scan("C").moments
    assert moments is not None
    assert moments.mean == (-4.0, 1.0)


def test_class_out_of_range_is_refused_with_its_first_row(tmp_path: Path) -> None:
    source = _save(tmp_path / "x.npy", np.array([[0, 1], [3, 0], [0, 9], [9, 9]]))
    scan = source.scan("T")
    assert scan.largest == 9
    source.check_classes(scan, 10)
    for classes, row in ((9, 2), (4, 2), (3, 1), (1, 0)):
        with pytest.raises(DataError, match=rf"x\.npy: row {row} .*class \d .*largest: 9.* 0 to {classes - 1}\b"):
            source.check_classes(scan, classes)


def test_values_have_no_largest_class(tmp_path: Path) -> None:
    source = _save(tmp_path / "x.npy", ARRAY)
    scan = source.scan("C")
    assert scan.largest is None
    source.check_classes(scan, 1)


def test_generated_rows_depend_on_the_seed_only() -> None:
    settings = SyntheticSettings(samples=20, source=GaussianSettings(dim=3))
    source = GeneratedSource(settings, 7)
    expected = GaussianSettings(dim=3).generate(20, np.random.default_rng(7))
    np.testing.assert_array_equal(source.rows.read(0, 20).numpy(), expected)
    assert not np.array_equal(GeneratedSource(settings, 8).rows.read(0, 20).numpy(), expected)


def test_generated_rows_have_a_hash_and_moments() -> None:
    source = GeneratedSource(SyntheticSettings(samples=20, source=GaussianSettings(dim=3)), 7)
    content, training = source.rows.read(0, 20).numpy(), np.arange(20) < 15
    scan = source.scan("C", training)
    assert scan.shards == (Shard("synthetic-gaussian", 20, hashlib.sha256(content.tobytes()).hexdigest()),)
    assert scan.moments is not None
    np.testing.assert_allclose(scan.moments.mean, content[training].astype("f8").mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    ("samples", "source"),
    [
        (100_000_000, GaussianSettings(dim=100_000)),
        (2, GaussianSettings(dim=10**13)),
        (2, SinusoidsSettings(length=10**13)),
        (2, MixtureSettings(components=4096, dim=10**10)),
    ],
)
def test_synthetic_data_larger_than_memory_are_refused(samples: int, source: SyntheticSource) -> None:
    with pytest.raises(DataError, match=rf"data\.samples: {samples:,} .*synthetic-{source.kind} .*[\d,.]+ GB"):
        GeneratedSource(SyntheticSettings(samples=samples, source=source), 0)


@pytest.mark.parametrize(
    "source",
    [
        GaussianSettings(dim=64),
        MixtureSettings(dim=64),
        SinusoidsSettings(length=256),
        TexturesSettings(),
        TilesSettings(height=32, width=32),
    ],
    ids=lambda source: source.kind,
)
def test_peak_memory_of_generation_is_at_most_1_5_times_the_estimate(
    source: SyntheticSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimates: list[int] = []
    monkeypatch.setattr(sources, "check_fits_memory", lambda size, what, advice: estimates.append(size))
    settings = SyntheticSettings(samples=2000 if source.kind != "tiles" else 200, source=source)
    tracemalloc.start()
    try:
        GeneratedSource(settings, 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(estimates) == 1
    assert peak < 1.5 * estimates[0]


def test_glob_skips_symlink_cycles_and_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "inner" / ".cache").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(tmp_path)
    for name in ("x.npy", "inner/y.npy", "inner/.z.npy", "inner/.cache/w.npy"):
        np.save(tmp_path / name, np.ones((2, 1)))
    for pattern in ("**/*.npy", "**"):
        paths = FileSource(f"{tmp_path}/{pattern}").paths
        assert paths == [tmp_path / "inner" / "y.npy", tmp_path / "x.npy"]


def test_path_too_long_for_the_file_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="File name too long"):
        FileSource(str(tmp_path / ("long" * 100)))
