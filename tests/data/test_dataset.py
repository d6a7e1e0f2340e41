"""A data set is split, resolved and normalised from its settings; what does not fit is refused by a message."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vqtool.data import Dataset, open_dataset, open_source, spec_of
from vqtool.data.order import split
from vqtool.data.settings import SyntheticSettings, TensorsSettings
from vqtool.data.spec import SampleSpec
from vqtool.data.synthetic.gaussian import GaussianSettings
from vqtool.data.synthetic.tiles import TilesSettings
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


def _parts(dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """All rows of the training and of the validation part."""
    training, validation = dataset.training, dataset.validation
    return training.read_rows(0, len(training)).numpy(), validation.read_rows(0, len(validation)).numpy()


def test_the_parts_are_disjoint_and_complete(folder: Path) -> None:
    training, validation = _parts(_open(folder / "vectors.npy", validation=0.25))
    assert (len(training), len(validation)) == (30, 10)
    both = np.concatenate([training, validation])
    assert np.array_equal(np.unique(both, axis=0), np.unique(VECTORS, axis=0))
    assert not np.array_equal(both, VECTORS)


def test_the_parts_are_drawn_by_the_seed(folder: Path) -> None:
    first, again, other = (_parts(_open(folder / "vectors.npy", seed))[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_validation_by_path_leaves_all_rows_to_training(folder: Path, tmp_path: Path) -> None:
    other = _save(tmp_path / "other.npy", VECTORS[:7] + 100)
    dataset = _open(folder / "vectors.npy", validation=str(other))
    training, validation = _parts(dataset)
    assert np.array_equal(training, VECTORS)
    assert np.array_equal(validation, VECTORS[:7] + 100)
    np.testing.assert_allclose(dataset.mean, [VECTORS.astype("f8").mean()] * 5)


def test_one_row_can_be_trained_on_when_validation_is_elsewhere(folder: Path, tmp_path: Path) -> None:
    dataset = _open(_save(tmp_path / "one.npy", VECTORS[:1]), validation=str(folder / "vectors.npy"))
    assert (len(dataset.training), len(dataset.validation)) == (1, 40)


def test_one_row_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one\.npy: contains one row; .* at least two"):
        _open(_save(tmp_path / "one.npy", VECTORS[:1]))


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_two_rows_are_split_one_and_one(tmp_path: Path, fraction: float) -> None:
    dataset = _open(_save(tmp_path / "two.npy", VECTORS[:2]), validation=fraction)
    assert (len(dataset.training), len(dataset.validation)) == (1, 1)


@pytest.mark.parametrize("normalize", ["global", "feature"])
def test_normalising_is_fitted_on_the_training_part_alone(tmp_path: Path, normalize: str) -> None:
    poisoned = VECTORS.copy()
    training, validation = split(40, 0.2, 3)
    poisoned[validation] = 1e6
    clean = _open(_save(tmp_path / "clean.npy", VECTORS), seed=3, validation=0.2, normalize=normalize)
    dataset = _open(_save(tmp_path / "poisoned.npy", poisoned), seed=3, validation=0.2, normalize=normalize)
    assert (_parts(dataset)[1] == 1e6).all()
    assert (dataset.mean, dataset.scale) == (clean.mean, clean.scale)
    axis = None if normalize == "global" else 0
    kept = VECTORS[training].astype(np.float64)
    np.testing.assert_allclose(dataset.mean, np.broadcast_to(kept.mean(axis=axis), 5), rtol=1e-10)
    np.testing.assert_allclose(dataset.scale, np.broadcast_to(kept.std(axis=axis), 5), rtol=1e-10)


@pytest.mark.parametrize("normalize", ["global", "feature"])
def test_normalising_images_is_by_channel_or_by_all(folder: Path, normalize: str) -> None:
    dataset = _open(folder / "images.npy", normalize=normalize)
    kept = _parts(dataset)[0].astype(np.float64)
    axes = (0, 1, 2, 3) if normalize == "global" else (0, 2, 3)
    np.testing.assert_allclose(dataset.mean, np.broadcast_to(kept.mean(axis=axes), 3), rtol=1e-10)
    np.testing.assert_allclose(dataset.scale, np.broadcast_to(kept.std(axis=axes), 3), rtol=1e-10)


def test_one_mean_and_scale_unless_told_otherwise(folder: Path) -> None:
    assert _open(folder / "vectors.npy").mean == _open(folder / "vectors.npy", normalize="global").mean
    assert len(set(_open(folder / "vectors.npy").scale)) == 1


def test_no_normalising_changes_nothing(folder: Path) -> None:
    dataset = _open(folder / "vectors.npy", normalize="none")
    assert (dataset.mean, dataset.scale) == ((0.0,) * 5, (1.0,) * 5)


def test_a_constant_feature_is_shifted_and_not_scaled(tmp_path: Path) -> None:
    array = np.stack([np.full(20, 0.1), np.arange(20.0)], axis=1).astype(np.float32)
    dataset = _open(_save(tmp_path / "x.npy", array), normalize="feature")
    assert dataset.mean[0] == np.float32(0.1)
    assert dataset.scale[0] == 1
    assert dataset.scale[1] > 1


@pytest.mark.parametrize("normalize", ["global", "feature"])
def test_constant_data_are_not_scaled(tmp_path: Path, normalize: str) -> None:
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
def test_what_follows_from_the_data_is_resolved_for_good(
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
    for one, other in zip(_parts(again), _parts(dataset), strict=True):
        np.testing.assert_array_equal(one, other)


def test_settings_left_auto_make_no_spec(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.dtype: is auto"):
        spec_of(TensorsSettings(path="x.npy", layout="C", channels=3, size=[], classes=None))


def test_paths_are_resolved_to_absolute_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    settings = open_dataset(TensorsSettings(path="vectors.npy", validation="vectors.npy"), 0).settings
    assert isinstance(settings, TensorsSettings)
    assert (settings.path, settings.validation) == (str(folder / "vectors.npy"),) * 2


def test_samples_are_what_a_network_sees(folder: Path) -> None:
    dataset = _open(folder / "images.npy", layout="HWC")
    training = dataset.training
    rows = _parts(dataset)[0]
    assert training.size == (3, 6)
    assert len(training) == len(rows) == 18
    np.testing.assert_array_equal(training.read(2, 5).numpy(), np.moveaxis(rows[2:5], 3, 1))
    np.testing.assert_array_equal(training.take(np.array([17, 0, 4])).numpy(), np.moveaxis(rows[[17, 0, 4]], 3, 1))


def test_samples_of_a_validation_file_are_all_its_rows(folder: Path) -> None:
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
    ("settings", "both"),
    [
        ({"channels": 4}, "data.channels is 4, but the array has 3"),
        ({"size": [8, 6]}, "data.size is [8, 6], but the array has [6, 8]"),
        ({"dtype": "float64"}, "data.dtype is float64, but the array has float32"),
        ({"layout": "C"}, "data.layout: C needs rows with 1 axis, but "),
        ({"layout": "HW"}, "data.layout: HW needs rows with 2 axes, but "),
    ],
)
def test_a_setting_the_data_contradict_says_both(folder: Path, settings: dict[str, Any], both: str) -> None:
    with pytest.raises(DataError) as caught:
        _open(folder / "images.npy", **settings)
    assert both in str(caught.value)
    assert "images.npy" in str(caught.value)
    assert "(3, 6, 8)" in str(caught.value)


def test_settings_the_data_confirm_are_taken(folder: Path) -> None:
    dataset = _open(folder / "images.npy", channels=3, size=[6, 8], dtype="float32", classes=None)
    assert dataset.spec == SampleSpec("CHW", 3, (6, 8), None, "float32")


def test_a_layout_of_two_readings_names_file_and_readings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.npy: rows of shape \(6, 5\) can have layout CT, TC or HW"):
        _open(_save(tmp_path / "x.npy", np.ones((4, 6, 5))))


def test_bytes_up_to_255_without_channels_are_not_guessed(folder: Path) -> None:
    with pytest.raises(DataError, match=r"grey\.npy: uint8 up to 255 .* set data\.layout to HW for classes"):
        _open(folder / "grey.npy")


def test_a_few_small_bytes_are_classes(tmp_path: Path) -> None:
    assert _open(_save(tmp_path / "x.npy", GRIDS.astype(np.uint8))).spec.classes == 7


def test_bytes_with_a_channel_are_values(tmp_path: Path) -> None:
    assert _open(_save(tmp_path / "x.npy", GREY[:, None])).spec == SampleSpec("CHW", 1, (28, 28), None, "uint8")


def test_a_negative_class_is_named_with_its_row(tmp_path: Path) -> None:
    grids = GRIDS.copy()
    grids[11, 0, 0] = -1
    with pytest.raises(DataError, match=r"x\.npy: row 11 contains a negative integer"):
        _open(_save(tmp_path / "x.npy", grids))


def test_a_class_beyond_the_given_number_is_named_with_its_row(tmp_path: Path) -> None:
    grids = GRIDS % 3
    grids[11, 0, 0] = grids[20, 0, 0] = 3
    with pytest.raises(DataError, match=r"x\.npy: row 11 contains class 3 .* 0 to 2; .* set data\.classes to 4$"):
        _open(_save(tmp_path / "x.npy", grids), classes=3)


@pytest.mark.parametrize("stray", [1 << 16, 100_000, 1 << 40])
def test_an_integer_too_large_for_a_class_is_named_with_its_row(tmp_path: Path, stray: int) -> None:
    grids = GRIDS.copy()
    grids[11, 0, 0] = stray
    path = _save(tmp_path / "x.npy", grids)
    advice = f", or set data.classes to {stray + 1}" if stray < 1 << 20 else ""
    with pytest.raises(
        DataError, match=rf"x\.npy: row 11 contains class {stray} .* channel axis if these are values{advice}$"
    ):
        _open(path)
    if stray < 1 << 20:
        assert _open(path, classes=stray + 1).spec.classes == stray + 1


@pytest.mark.parametrize("name", ["vectors", "images"])
def test_classes_are_refused_for_floats(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.classes: 4, but .*\.npy contains float32 values"):
        _open(folder / f"{name}.npy", classes=4)


def test_classes_are_refused_for_integers_with_channels(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.classes: 256, but .*int64 values in layout CT"):
        _open(folder / "grids.npy", layout="CT", classes=256)


def test_no_classes_are_refused_for_a_grid_of_integers(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.classes: null, but integers in layout HW are classes"):
        _open(folder / "grids.npy", classes=None)


@pytest.mark.parametrize("normalize", ["global", "feature"])
def test_normalising_classes_is_refused(folder: Path, normalize: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.normalize: {normalize}, but classes are not normalised"):
        _open(folder / "grids.npy", normalize=normalize)


def test_classes_are_not_normalised(folder: Path) -> None:
    for dataset in (_open(folder / "grids.npy"), _open(folder / "grids.npy", normalize="none")):
        assert (dataset.mean, dataset.scale, dataset.settings.normalize) == ((0.0,), (1.0,), "none")


@pytest.mark.parametrize(
    "other", [np.ones((4, 3, 6, 9), "f4"), np.ones((4, 2, 6, 8), "f4"), np.ones((4, 5), "f4"), np.ones((4, 3, 6), "f4")]
)
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_validation_rows_of_another_shape_say_both_shapes(
    folder: Path, tmp_path: Path, layout: str, other: NDArray[np.float32]
) -> None:
    path = _save(tmp_path / "other.npy", other)
    with pytest.raises(DataError) as caught:
        _open(folder / "images.npy", layout=layout, validation=str(path))
    assert f"other.npy: rows have shape {other.shape[1:]}" in str(caught.value)
    assert "(3, 6, 8)" in str(caught.value)


def test_validation_rows_of_fractions_are_no_classes(folder: Path, tmp_path: Path) -> None:
    path = _save(tmp_path / "other.npy", np.full((4, 6, 5), 1.5))
    with pytest.raises(DataError, match=r"other\.npy: .*float64"):
        _open(folder / "grids.npy", validation=str(path))


def test_classes_are_counted_over_both_parts(folder: Path, tmp_path: Path) -> None:
    path = _save(tmp_path / "other.npy", np.full((2, 6, 5), 9))
    assert _open(folder / "grids.npy", validation=str(path)).spec.classes == 10
    with pytest.raises(DataError, match=r"other\.npy: row 0 contains class 9 .* 0 to 6;"):
        _open(folder / "grids.npy", validation=str(path), classes=7)


def test_nan_in_a_validation_file_is_named_with_its_row(folder: Path, tmp_path: Path) -> None:
    other = VECTORS.copy()
    other[5, 0] = np.nan
    with pytest.raises(DataError, match=r"other\.npy: row 5 contains NaN"):
        _open(folder / "vectors.npy", validation=str(_save(tmp_path / "other.npy", other)))


def test_the_key_chooses_in_both_containers(tmp_path: Path) -> None:
    for name, offset in (("training", 0), ("validation", 100)):
        np.savez(tmp_path / f"{name}.npz", x=VECTORS + offset, y=np.zeros((3, 3)))
    dataset = _open(tmp_path / "training.npz", key="x", validation=str(tmp_path / "validation.npz"))
    assert np.array_equal(_parts(dataset)[1], VECTORS + 100)


@pytest.mark.parametrize("source", [GaussianSettings(dim=3), TilesSettings(height=16, width=15)])
def test_synthetic_data_are_resolved_and_repeatable(source: GaussianSettings | TilesSettings) -> None:
    settings = SyntheticSettings(samples=30, source=source, validation=0.2)
    dataset = open_dataset(settings, 5)
    assert (len(dataset.training), len(dataset.validation)) == (24, 6)
    assert dataset.spec == {
        "gaussian": SampleSpec("C", 3, (), None, "float32"),
        "tiles": SampleSpec("HW", 1, (16, 15), 3, "uint8"),
    }.get(source.kind)
    again = open_dataset(SyntheticSettings.model_validate(dataset.settings.model_dump()), 5)
    assert again.settings == dataset.settings
    for one, other in zip(_parts(again), _parts(dataset), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_source_is_all_rows_in_their_order(folder: Path) -> None:
    rows = open_source(TensorsSettings(path=str(folder / "vectors.npy")), 0).rows
    np.testing.assert_array_equal(rows.read(0, len(rows)).numpy(), VECTORS)


def test_values_that_float32_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "far.npy", 1e8 + np.random.default_rng(0).standard_normal((50, 3)))
    settings = TensorsSettings(path=str(tmp_path / "far.npy"))
    with pytest.raises(DataError, match=r"far\.npy: a mean of 1e\+08 with a standard deviation of .*subtract the mean"):
        open_dataset(settings, 0)
