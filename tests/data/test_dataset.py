"""Data sets: splits, resolved settings, normalisation, and messages for data that contradict the settings."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vqtool.data import Dataset, open_dataset, open_source, spec_of, train_validation_split
from vqtool.data.layout import SampleSpec
from vqtool.data.settings import SyntheticSettings, TensorsSettings
from vqtool.data.synthetic import GaussianSettings, TilesSettings
from vqtool.errors import ConfigError, DataError

RANDOM = np.random.default_rng(0)
VECTORS = (3 + 2 * RANDOM.standard_normal((40, 5)) * [1, 2, 3, 4, 5]).astype(np.float32)
IMAGES = RANDOM.random((20, 3, 6, 8), dtype=np.float32)
GRIDS = RANDOM.integers(0, 7, (30, 6, 5))
GREY = np.arange(10 * 28 * 28).reshape(10, 28, 28).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, array in {"vectors": VECTORS, "images": IMAGES, "grids": GRIDS, "grey": GREY}.items():
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path


def _save(path: Path, array: NDArray[np.generic]) -> Path:
    np.save(path, array)
    return path


def _open(path: Path, seed: int = 0, **settings: Any) -> Dataset:
    return open_dataset(TensorsSettings(path=str(path), **settings), seed)


def _splits(dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return all rows of the training and of the validation split."""
    training, validation = dataset.training, dataset.validation
    return training.read_rows(0, len(training)).numpy(), validation.read_rows(0, len(validation)).numpy()


def test_splits_are_disjoint_complete_and_shuffled(folder: Path) -> None:
    training, validation = _splits(_open(folder / "vectors.npy", validation=0.25))
    assert (len(training), len(validation)) == (30, 10)
    both = np.concatenate([training, validation])
    assert np.array_equal(np.unique(both, axis=0), np.unique(VECTORS, axis=0))
    assert not np.array_equal(both, VECTORS)


def test_validation_split_depends_on_the_seed(folder: Path) -> None:
    first, again, other = (_splits(_open(folder / "vectors.npy", seed))[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_separate_validation_data_leave_all_rows_for_training(folder: Path, tmp_path: Path) -> None:
    other = _save(tmp_path / "other.npy", VECTORS[:7] + 100)
    dataset = _open(folder / "vectors.npy", validation=str(other))
    training, validation = _splits(dataset)
    assert np.array_equal(training, VECTORS)
    assert np.array_equal(validation, VECTORS[:7] + 100)
    np.testing.assert_allclose(dataset.mean, [VECTORS.astype("f8").mean()] * 5)


def test_one_row_is_accepted_with_separate_validation_data(folder: Path, tmp_path: Path) -> None:
    dataset = _open(_save(tmp_path / "one.npy", VECTORS[:1]), validation=str(folder / "vectors.npy"))
    assert (len(dataset.training), len(dataset.validation)) == (1, 40)


def test_one_row_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one\.npy: .*one row.* two"):
        _open(_save(tmp_path / "one.npy", VECTORS[:1]))


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_two_rows_are_split_one_and_one(tmp_path: Path, fraction: float) -> None:
    dataset = _open(_save(tmp_path / "two.npy", VECTORS[:2]), validation=fraction)
    assert (len(dataset.training), len(dataset.validation)) == (1, 1)


@pytest.mark.parametrize("normalize", ["global", "feature"])
def test_normalisation_is_fitted_on_the_training_split_only(tmp_path: Path, normalize: str) -> None:
    poisoned = VECTORS.copy()
    training, validation = train_validation_split(40, 0.2, 3)
    poisoned[validation] = 1e6
    clean = _open(_save(tmp_path / "clean.npy", VECTORS), seed=3, validation=0.2, normalize=normalize)
    dataset = _open(_save(tmp_path / "poisoned.npy", poisoned), seed=3, validation=0.2, normalize=normalize)
    assert (_splits(dataset)[1] == 1e6).all()
    assert (dataset.mean, dataset.scale) == (clean.mean, clean.scale)
    axis = None if normalize == "global" else 0
    rows = VECTORS[training].astype(np.float64)
    np.testing.assert_allclose(dataset.mean, np.broadcast_to(rows.mean(axis=axis), 5), rtol=1e-10)
    np.testing.assert_allclose(dataset.scale, np.broadcast_to(rows.std(axis=axis), 5), rtol=1e-10)


@pytest.mark.parametrize("normalize", ["global", "feature"])
def test_normalisation_of_images_is_per_channel_or_global(folder: Path, normalize: str) -> None:
    dataset = _open(folder / "images.npy", normalize=normalize)
    rows = _splits(dataset)[0].astype(np.float64)
    axes = (0, 1, 2, 3) if normalize == "global" else (0, 2, 3)
    np.testing.assert_allclose(dataset.mean, np.broadcast_to(rows.mean(axis=axes), 3), rtol=1e-10)
    np.testing.assert_allclose(dataset.scale, np.broadcast_to(rows.std(axis=axes), 3), rtol=1e-10)


def test_normalisation_is_global_by_default(folder: Path) -> None:
    assert _open(folder / "vectors.npy").mean == _open(folder / "vectors.npy", normalize="global").mean
    assert len(set(_open(folder / "vectors.npy").scale)) == 1


def test_normalize_none_has_mean_0_and_scale_1(folder: Path) -> None:
    dataset = _open(folder / "vectors.npy", normalize="none")
    assert (dataset.mean, dataset.scale) == ((0.0,) * 5, (1.0,) * 5)


def test_constant_feature_has_scale_1(tmp_path: Path) -> None:
    array = np.stack([np.full(20, 0.1), np.arange(20.0)], axis=1).astype(np.float32)
    dataset = _open(_save(tmp_path / "x.npy", array), normalize="feature")
    assert dataset.mean[0] == np.float32(0.1)
    assert dataset.scale[0] == 1
    assert dataset.scale[1] > 1


@pytest.mark.parametrize("normalize", ["global", "feature"])
def test_constant_data_have_scale_1(tmp_path: Path, normalize: str) -> None:
    dataset = _open(_save(tmp_path / "x.npy", np.full((20, 3), 0.1, dtype=np.float32)), normalize=normalize)
    assert dataset.scale == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "settings", "spec"),
    [
        ("vectors", {}, SampleSpec("C", 5, (), None, "float32")),
        ("images", {}, SampleSpec("CHW", 3, (6, 8), None, "float32")),
        ("images", {"layout": "HWC"}, SampleSpec("HWC", 8, (3, 6), None, "float32")),
        ("grids", {}, SampleSpec("HW", 1, (6, 5), 7, "int64")),
        ("grids", {"classes": 12}, SampleSpec("HW", 1, (6, 5), 12, "int64")),
        ("grids", {"layout": "CT"}, SampleSpec("CT", 6, (5,), None, "int64")),
        ("grey", {"layout": "HW"}, SampleSpec("HW", 1, (28, 28), 256, "uint8")),
        ("grey", {"layout": "TC"}, SampleSpec("TC", 28, (28,), None, "uint8")),
    ],
)
def test_resolved_settings_have_no_auto_and_open_the_same_data_set(
    folder: Path, name: str, settings: dict[str, Any], spec: SampleSpec
) -> None:
    dataset = _open(folder / f"{name}.npy", **settings)
    resolved = dataset.settings
    assert dataset.spec == spec_of(resolved) == spec
    assert "auto" not in resolved.model_dump().values()
    read_back = TensorsSettings.model_validate(resolved.model_dump())
    again = open_dataset(read_back, 0)
    assert again.settings == resolved
    assert (again.spec, again.mean, again.scale) == (dataset.spec, dataset.mean, dataset.scale)
    for one, other in zip(_splits(again), _splits(dataset), strict=True):
        np.testing.assert_array_equal(one, other)


def test_spec_of_refuses_auto(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.dtype: .*auto"):
        spec_of(TensorsSettings(path="x.npy", layout="C", channels=3, size=[], classes=None))


def test_paths_are_resolved_to_absolute_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    settings = open_dataset(TensorsSettings(path="vectors.npy", validation="vectors.npy"), 0).settings
    assert isinstance(settings, TensorsSettings)
    assert (settings.path, settings.validation) == (str(folder / "vectors.npy"),) * 2


def test_samples_have_channels_first(folder: Path) -> None:
    dataset = _open(folder / "images.npy", layout="HWC")
    training = dataset.training
    rows = _splits(dataset)[0]
    assert training.size == (3, 6)
    assert len(training) == len(rows) == 18
    np.testing.assert_array_equal(training.read(2, 5).numpy(), np.moveaxis(rows[2:5], 3, 1))
    np.testing.assert_array_equal(training.take(np.array([17, 0, 4])).numpy(), np.moveaxis(rows[[17, 0, 4]], 3, 1))


def test_samples_of_separate_validation_data_are_all_its_rows(folder: Path) -> None:
    validation = _open(folder / "vectors.npy", validation=str(folder / "vectors.npy")).validation
    np.testing.assert_array_equal(validation.take(np.array([39, 0])).numpy(), VECTORS[[39, 0]])
    np.testing.assert_array_equal(validation.read(3, 9).numpy(), VECTORS[3:9])


def test_samples_of_grids_are_classes(folder: Path) -> None:
    samples = _open(folder / "grids.npy").training.read(0, 3)
    assert samples.dtype == torch.int64
    assert samples.shape == (3, 6, 5)


def test_booleans_are_two_classes(tmp_path: Path) -> None:
    dataset = _open(_save(tmp_path / "x.npy", GRIDS > 3))
    assert dataset.spec == SampleSpec("HW", 1, (6, 5), 2, "bool")


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"channels": 4}, r"data\.channels .*\b4\b.*\b3\b"),
        ({"size": [8, 6]}, r"data\.size .*\[8, 6\].*\[6, 8\]"),
        ({"dtype": "float64"}, r"data\.dtype .*float64.*float32"),
        ({"layout": "C"}, r"data\.layout: C .*\b1 axis\b"),
        ({"layout": "HW"}, r"data\.layout: HW .*\b2 axes\b"),
    ],
)
def test_setting_that_contradicts_the_data_is_refused_with_both_values(
    folder: Path, settings: dict[str, Any], pattern: str
) -> None:
    with pytest.raises(DataError) as caught:
        _open(folder / "images.npy", **settings)
    assert re.search(pattern, str(caught.value))
    assert "images.npy" in str(caught.value)
    assert "(3, 6, 8)" in str(caught.value)


def test_settings_that_agree_with_the_data_are_accepted(folder: Path) -> None:
    dataset = _open(folder / "images.npy", channels=3, size=[6, 8], dtype="float32", classes=None)
    assert dataset.spec == SampleSpec("CHW", 3, (6, 8), None, "float32")


def test_ambiguous_layout_is_refused_with_file_and_candidates(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.npy: .*\(6, 5\).*CT, TC or HW"):
        _open(_save(tmp_path / "x.npy", np.ones((4, 6, 5))))


def test_uint8_up_to_255_without_channels_is_ambiguous(folder: Path) -> None:
    with pytest.raises(DataError, match=r"grey\.npy: .*uint8.*255.*data\.layout.*HW"):
        _open(folder / "grey.npy")


def test_small_uint8_without_channels_are_classes(tmp_path: Path) -> None:
    assert _open(_save(tmp_path / "x.npy", GRIDS.astype(np.uint8))).spec.classes == 7


def test_uint8_with_a_channel_axis_are_values(tmp_path: Path) -> None:
    assert _open(_save(tmp_path / "x.npy", GREY[:, None])).spec == SampleSpec("CHW", 1, (28, 28), None, "uint8")


def test_negative_class_is_refused_with_its_row(tmp_path: Path) -> None:
    grids = GRIDS.copy()
    grids[11, 0, 0] = -1
    with pytest.raises(DataError, match=r"x\.npy: row 11 .*negative"):
        _open(_save(tmp_path / "x.npy", grids))


def test_class_beyond_data_classes_is_refused_with_its_row(tmp_path: Path) -> None:
    grids = GRIDS % 3
    grids[11, 0, 0] = grids[20, 0, 0] = 3
    with pytest.raises(DataError, match=r"x\.npy: row 11 .*class 3 .* 0 to 2\b.*data\.classes.* 4$"):
        _open(_save(tmp_path / "x.npy", grids), classes=3)


@pytest.mark.parametrize("stray", [1 << 16, 100_000, 1 << 40])
def test_integer_too_large_for_a_class_is_refused_with_its_row(tmp_path: Path, stray: int) -> None:
    grids = GRIDS.copy()
    grids[11, 0, 0] = stray
    path = _save(tmp_path / "x.npy", grids)
    with pytest.raises(DataError, match=rf"x\.npy: row 11 .*class {stray} .*channel axis") as caught:
        _open(path)
    assert ("data.classes" in str(caught.value)) == (stray < 1 << 20)
    if stray < 1 << 20:
        assert str(caught.value).endswith(f" {stray + 1}")
        assert _open(path, classes=stray + 1).spec.classes == stray + 1


@pytest.mark.parametrize("name", ["vectors", "images"])
def test_classes_are_refused_for_floats(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.classes: 4\b.*\.npy .*float32"):
        _open(folder / f"{name}.npy", classes=4)


def test_classes_are_refused_for_integers_with_channels(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.classes: 256\b.*int64.*layout CT"):
        _open(folder / "grids.npy", layout="CT", classes=256)


def test_classes_null_is_refused_for_a_grid_of_integers(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.classes: null\b.*layout HW"):
        _open(folder / "grids.npy", classes=None)


@pytest.mark.parametrize("normalize", ["global", "feature"])
def test_normalize_is_refused_for_classes(folder: Path, normalize: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.normalize: {normalize}\b.*classes"):
        _open(folder / "grids.npy", normalize=normalize)


def test_classes_are_not_normalised(folder: Path) -> None:
    for dataset in (_open(folder / "grids.npy"), _open(folder / "grids.npy", normalize="none")):
        assert (dataset.mean, dataset.scale, dataset.settings.normalize) == ((0.0,), (1.0,), "none")


@pytest.mark.parametrize(
    "other", [np.ones((4, 3, 6, 9), "f4"), np.ones((4, 2, 6, 8), "f4"), np.ones((4, 5), "f4"), np.ones((4, 3, 6), "f4")]
)
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_validation_rows_of_another_shape_are_refused_with_both_shapes(
    folder: Path, tmp_path: Path, layout: str, other: NDArray[np.float32]
) -> None:
    path = _save(tmp_path / "other.npy", other)
    with pytest.raises(DataError) as caught:
        _open(folder / "images.npy", layout=layout, validation=str(path))
    assert "other.npy: " in str(caught.value)
    assert f"shape {other.shape[1:]}" in str(caught.value)
    assert "(3, 6, 8)" in str(caught.value)


def test_float_validation_rows_are_refused_for_classes(folder: Path, tmp_path: Path) -> None:
    path = _save(tmp_path / "other.npy", np.full((4, 6, 5), 1.5))
    with pytest.raises(DataError, match=r"other\.npy: .*float64"):
        _open(folder / "grids.npy", validation=str(path))


def test_number_of_classes_covers_both_splits(folder: Path, tmp_path: Path) -> None:
    path = _save(tmp_path / "other.npy", np.full((2, 6, 5), 9))
    assert _open(folder / "grids.npy", validation=str(path)).spec.classes == 10
    with pytest.raises(DataError, match=r"other\.npy: row 0 .*class 9 .* 0 to 6\b"):
        _open(folder / "grids.npy", validation=str(path), classes=7)


def test_nan_in_validation_data_is_refused_with_its_row(folder: Path, tmp_path: Path) -> None:
    other = VECTORS.copy()
    other[5, 0] = np.nan
    with pytest.raises(DataError, match=r"other\.npy: row 5 .*NaN"):
        _open(folder / "vectors.npy", validation=str(_save(tmp_path / "other.npy", other)))


def test_key_selects_the_array_in_both_files(tmp_path: Path) -> None:
    for name, offset in (("training", 0), ("validation", 100)):
        np.savez(tmp_path / f"{name}.npz", x=VECTORS + offset, y=np.zeros((3, 3)))
    dataset = _open(tmp_path / "training.npz", key="x", validation=str(tmp_path / "validation.npz"))
    assert np.array_equal(_splits(dataset)[1], VECTORS + 100)


@pytest.mark.parametrize("source", [GaussianSettings(dim=3), TilesSettings(height=16, width=15)])
def test_synthetic_data_are_resolved_and_reproducible(source: GaussianSettings | TilesSettings) -> None:
    settings = SyntheticSettings(samples=30, source=source, validation=0.2)
    dataset = open_dataset(settings, 5)
    assert (len(dataset.training), len(dataset.validation)) == (24, 6)
    assert dataset.spec == {
        "gaussian": SampleSpec("C", 3, (), None, "float32"),
        "tiles": SampleSpec("HW", 1, (16, 15), 3, "uint8"),
    }.get(source.kind)
    again = open_dataset(SyntheticSettings.model_validate(dataset.settings.model_dump()), 5)
    assert again.settings == dataset.settings
    for one, other in zip(_splits(again), _splits(dataset), strict=True):
        np.testing.assert_array_equal(one, other)


def test_open_source_has_all_rows_in_order(folder: Path) -> None:
    rows = open_source(TensorsSettings(path=str(folder / "vectors.npy")), 0).rows
    np.testing.assert_array_equal(rows.read(0, len(rows)).numpy(), VECTORS)


def test_standard_deviation_below_float32_precision_of_the_mean_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "far.npy", 1e8 + np.random.default_rng(0).standard_normal((50, 3)))
    settings = TensorsSettings(path=str(tmp_path / "far.npy"))
    with pytest.raises(DataError, match=r"far\.npy: .*mean.* 1e\+08 .*standard deviation.*float32"):
        open_dataset(settings, 0)


@pytest.mark.parametrize(("rows", "fraction"), [(100, 0.1), (100, 0.25), (7, 0.5), (1000, 0.333)])
def test_split_is_disjoint_complete_and_ascending(rows: int, fraction: float) -> None:
    training, validation = train_validation_split(rows, fraction, 0)
    assert len(validation) == pytest.approx(rows * fraction, abs=0.51)
    assert sorted([*training, *validation]) == list(range(rows))
    assert (np.diff(training) > 0).all()
    assert (np.diff(validation) > 0).all()


@pytest.mark.parametrize(("rows", "fraction"), [(2, 0.01), (2, 0.99), (10, 0.001), (10, 0.999)])
def test_no_split_is_empty(rows: int, fraction: float) -> None:
    training, validation = train_validation_split(rows, fraction, 0)
    assert len(training) >= 1
    assert len(validation) >= 1
    assert len(training) + len(validation) == rows


def test_split_depends_on_the_seed_and_is_not_the_first_rows() -> None:
    assert train_validation_split(100, 0.2, 4)[1].tolist() == train_validation_split(100, 0.2, 4)[1].tolist()
    assert train_validation_split(100, 0.2, 4)[1].tolist() != train_validation_split(100, 0.2, 5)[1].tolist()
    assert train_validation_split(100, 0.2, 4)[1].tolist() != list(range(20))
