"""A file, a folder or a glob is one source of rows; so are synthetic settings."""

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
from vqtool.data.synthetic import SyntheticSource
from vqtool.data.synthetic.gaussian import GaussianSettings
from vqtool.data.synthetic.mixture import MixtureSettings
from vqtool.data.synthetic.sinusoids import SinusoidsSettings
from vqtool.data.synthetic.textures import TexturesSettings
from vqtool.data.synthetic.tiles import TilesSettings
from vqtool.errors import DataError

ARRAY = np.random.default_rng(0).random((12, 3), dtype=np.float32)
SIZES = {"a.npy": 5, "b.safetensors": 1, "c.npz": 4, "d.pt": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """ARRAY in four shards, written out of order, among files that are none."""
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


def _named(caught: pytest.ExceptionInfo[DataError], *texts: object) -> bool:
    return all(str(text) in str(caught.value) for text in texts)


@pytest.mark.parametrize("pattern", ["", "/", "/*.[nsp]*", "/*"])
def test_a_folder_or_a_glob_is_one_data_set_in_name_order(folder: Path, pattern: str) -> None:
    source = FileSource(f"{folder}{pattern}")
    assert (len(source.rows), source.rows.shape, source.rows.dtype) == (12, (3,), torch.float32)
    np.testing.assert_array_equal(source.rows.read(0, 12).numpy(), ARRAY)
    assert [(shard.name, shard.rows) for shard in source.survey("C").shards] == list(SIZES.items())


@pytest.mark.parametrize("numbers", [[11, 0, 5, 4, 6, 9, 10], [7, 7, 1], list(range(11, -1, -1)), []])
def test_rows_are_taken_across_shards_in_any_order(folder: Path, numbers: list[int]) -> None:
    index = np.array(numbers, dtype=np.int64)
    np.testing.assert_array_equal(FileSource(str(folder)).rows.take(index).numpy(), ARRAY[index])


def test_a_glob_takes_only_what_it_names(folder: Path) -> None:
    np.testing.assert_array_equal(FileSource(f"{folder}/[bd].*").rows.read(0, 3).numpy(), ARRAY[[5, 10, 11]])


def test_a_glob_may_reach_over_folders(tmp_path: Path) -> None:
    for number in (1, 0, 2):
        (tmp_path / f"part{number}").mkdir()
        np.save(tmp_path / f"part{number}" / "x.npy", np.full((2, 1), float(number)))
    expected = [[0.0], [0.0], [1.0], [1.0], [2.0], [2.0]]
    assert FileSource(f"{tmp_path}/part*/x.npy").rows.read(0, 6).tolist() == expected
    assert FileSource(f"{tmp_path}/**/x.npy").rows.read(0, 6).tolist() == expected


def test_a_name_with_brackets_is_a_name_where_such_a_file_is(tmp_path: Path) -> None:
    assert _save(tmp_path / "x[1].npy", ARRAY).rows.read(0, 12).shape == (12, 3)


def test_suffixes_are_known_in_capitals_too(tmp_path: Path) -> None:
    _save(tmp_path / "x.npy", ARRAY)
    (tmp_path / "x.npy").rename(tmp_path / "X.NPY")
    assert len(FileSource(str(tmp_path)).rows) == 12


def test_one_key_chooses_in_every_shard(tmp_path: Path) -> None:
    for number in (0, 1):
        np.savez(tmp_path / f"{number}.npz", a=np.full((2, 1), number), b=np.zeros((7, 7)))
    assert FileSource(str(tmp_path), "a").rows.read(0, 4).tolist() == [[0], [0], [1], [1]]


@pytest.mark.parametrize("other", [np.zeros((2, 4), dtype=np.float32), np.zeros((2, 3)), np.zeros((2, 3, 1), "f4")])
def test_shards_that_disagree_are_named_with_both_shapes_and_types(folder: Path, other: NDArray[np.generic]) -> None:
    np.save(folder / "bad.npy", other)
    with pytest.raises(DataError) as caught:
        FileSource(str(folder))
    assert _named(caught, folder / "bad.npy", folder / "a.npy")
    pairs = {"shape": (other.shape[1:], (3,)), "dtype": (other.dtype.name, "float32")}
    for name, (found, expected) in pairs.items():
        shown = [f"{name} {value}" in str(caught.value) for value in (found, expected)]
        assert shown == [str(found) != str(expected)] * 2


@pytest.mark.parametrize("path", ["absent.npy", "absent/x.npy"])
def test_a_missing_file_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=rf"{path}: does not exist"):
        FileSource(str(tmp_path / path))


@pytest.mark.parametrize("pattern", ["", "/*.npy", "/x[0-9].pt"])
def test_a_folder_or_a_glob_of_nothing_lists_what_is_looked_for(tmp_path: Path, pattern: str) -> None:
    (tmp_path / ".hidden.npy").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        FileSource(f"{tmp_path}{pattern}")
    if pattern:
        assert _named(caught, f"{tmp_path}{pattern}: matches no file; check the pattern")
    else:
        assert _named(caught, f"{tmp_path}: no tensor files found", ".npy, .npz, .safetensors, .pt or .pth")


def test_a_glob_of_other_files_lists_the_suffixes(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        FileSource(f"{tmp_path}/*.csv")
    assert _named(caught, f"{tmp_path}/*.csv: no tensor files found", ".npy, .npz, .safetensors, .pt or .pth")


def test_the_hash_of_one_shard_is_that_of_the_file(tmp_path: Path) -> None:
    source, digest = _save(tmp_path / "x.npy", ARRAY), hashlib.sha256((tmp_path / "x.npy").read_bytes()).hexdigest()
    survey = source.survey("C")
    assert survey.shards == (Shard("x.npy", 12, digest),)
    assert survey.sha256 == digest


def test_the_hash_of_several_shards_is_that_of_their_digests(folder: Path) -> None:
    survey = FileSource(str(folder)).survey("C")
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SIZES]
    assert [shard.sha256 for shard in survey.shards] == digests
    assert survey.sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()


def test_moments_are_those_of_the_training_rows_of_all_shards(folder: Path) -> None:
    training = np.isin(np.arange(12), [0, 3, 6, 7, 8, 11])
    moments = FileSource(str(folder)).survey("C", training).moments
    assert moments is not None
    assert moments.count == 6
    np.testing.assert_allclose(moments.mean, ARRAY[training].astype("f8").mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(np.array(moments.squares) / 6, ARRAY[training].astype("f8").var(axis=0), rtol=1e-10)


def test_a_shard_with_nan_is_named_with_its_row(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 2)))
    np.save(tmp_path / "b.npy", np.array([[0.0, 0.0], [0.0, np.nan]]))
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/b.npy: row 1 contains NaN")):
        FileSource(str(tmp_path)).survey("C")


@pytest.mark.parametrize("row", [0, 3, 6])
def test_the_first_negative_class_is_named(tmp_path: Path, row: int) -> None:
    whole = np.arange(21).reshape(7, 3)
    whole[row, 1] = whole[6, 2] = -1
    np.save(tmp_path / "a.npy", whole[:2])
    np.save(tmp_path / "b.npy", whole[2:])
    message = rf"row {row} contains a negative integer, but integers in layout T are classes.* set data\.layout to C$"
    with pytest.raises(DataError, match=message):
        FileSource(str(tmp_path)).survey("T")


def test_a_huge_unsigned_integer_is_not_called_negative(tmp_path: Path) -> None:
    source = _save(tmp_path / "x.npy", np.full((3, 2), 1 << 63, dtype=np.uint64))
    with pytest.raises(DataError, match=r"row 0 contains class") as caught:
        _check_classes(source, 1 << 20)
    assert "negative" not in str(caught.value)


def _check_classes(source: FileSource, classes: int) -> None:
    source.check_classes(source.survey("T"), classes)


def test_negative_integers_with_channels_are_values(tmp_path: Path) -> None:
    moments = _save(tmp_path / "x.npy", np.array([[-3, 1], [-5, 1]])).survey("C").moments
    assert moments is not None
    assert moments.mean == (-4.0, 1.0)


def test_a_class_beyond_the_last_is_named_with_its_first_row(tmp_path: Path) -> None:
    source = _save(tmp_path / "x.npy", np.array([[0, 1], [3, 0], [0, 9], [9, 9]]))
    survey = source.survey("T")
    assert survey.largest == 9
    source.check_classes(survey, 10)
    for classes, row in ((9, 2), (4, 2), (3, 1), (1, 0)):
        with pytest.raises(DataError, match=rf"x\.npy: row {row} contains class \d .*largest: 9.* 0 to {classes - 1};"):
            source.check_classes(survey, classes)


def test_values_have_no_largest_class(tmp_path: Path) -> None:
    source = _save(tmp_path / "x.npy", ARRAY)
    survey = source.survey("C")
    assert survey.largest is None
    source.check_classes(survey, 1)


def test_generated_rows_are_those_of_the_seed() -> None:
    settings = SyntheticSettings(samples=20, source=GaussianSettings(dim=3))
    source = GeneratedSource(settings, 7)
    expected = GaussianSettings(dim=3).generate(20, np.random.default_rng(7))
    np.testing.assert_array_equal(source.rows.read(0, 20).numpy(), expected)
    assert not np.array_equal(GeneratedSource(settings, 8).rows.read(0, 20).numpy(), expected)


def test_generated_rows_are_hashed_and_measured() -> None:
    source = GeneratedSource(SyntheticSettings(samples=20, source=GaussianSettings(dim=3)), 7)
    content, training = source.rows.read(0, 20).numpy(), np.arange(20) < 15
    survey = source.survey("C", training)
    assert survey.shards == (Shard("synthetic-gaussian", 20, hashlib.sha256(content.tobytes()).hexdigest()),)
    assert survey.moments is not None
    np.testing.assert_allclose(survey.moments.mean, content[training].astype("f8").mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    ("samples", "source"),
    [
        (100_000_000, GaussianSettings(dim=100_000)),
        (2, GaussianSettings(dim=10**13)),
        (2, SinusoidsSettings(length=10**13)),
        (2, MixtureSettings(components=4096, dim=10**10)),
    ],
)
def test_more_than_fits_in_memory_is_refused(samples: int, source: SyntheticSource) -> None:
    with pytest.raises(
        DataError, match=rf"data.samples: {samples:,} of synthetic-{source.kind} needs [\d,.]+ GB .*lower data.samples"
    ):
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
def test_generating_takes_the_memory_that_was_asked_for(
    source: SyntheticSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(sources, "check_fits_memory", lambda size, what, advice: asked.append(size))
    settings = SyntheticSettings(samples=2000 if source.kind != "tiles" else 200, source=source)
    tracemalloc.start()
    try:
        GeneratedSource(settings, 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(asked) == 1
    assert peak < 1.5 * asked[0]


def test_links_that_lead_back_are_not_followed_and_hidden_files_not_taken(tmp_path: Path) -> None:
    (tmp_path / "inner" / ".cache").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(tmp_path)
    for name in ("x.npy", "inner/y.npy", "inner/.z.npy", "inner/.cache/w.npy"):
        np.save(tmp_path / name, np.ones((2, 1)))
    for pattern in ("**/*.npy", "**"):
        found = FileSource(f"{tmp_path}/{pattern}").paths
        assert found == [tmp_path / "inner" / "y.npy", tmp_path / "x.npy"]


def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="File name too long"):
        FileSource(str(tmp_path / ("long" * 100)))
