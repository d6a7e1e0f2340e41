"""Synthetic sources: functions of the seed, with the documented statistics."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from vqtool.data.synthetic import (
    DOOR,
    FLOOR,
    WALL,
    GaussianSettings,
    MixtureSettings,
    SinusoidsSettings,
    SyntheticSource,
    TexturesSettings,
    TilesSettings,
)

# Settings, layout, row shape and dtype.
SOURCES = [
    (GaussianSettings(dim=5), "C", (5,), np.float32),
    (MixtureSettings(components=3, dim=4), "C", (4,), np.float32),
    (SinusoidsSettings(channels=2, length=32), "CT", (2, 32), np.float32),
    (TexturesSettings(channels=3, height=8, width=12), "CHW", (3, 8, 12), np.float32),
    (TilesSettings(height=19, width=24), "HW", (19, 24), np.uint8),
]
each_source = pytest.mark.parametrize(
    ("source", "layout", "row", "dtype"), SOURCES, ids=[source.kind for source, *_ in SOURCES]
)


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@each_source
def test_shape_dtype_and_layout(source: SyntheticSource, layout: str, row: tuple[int, ...], dtype: type) -> None:
    for samples in (1, 7):
        array = source.generate(samples, _random())
        assert (array.shape, array.dtype, source.layout) == ((samples, *row), dtype, layout)


@each_source
def test_samples_are_a_function_of_the_seed_and_distinct(
    source: SyntheticSource, layout: str, row: tuple[int, ...], dtype: type
) -> None:
    array = source.generate(6, _random(3))
    assert np.array_equal(source.generate(6, _random(3)), array)
    assert not np.array_equal(source.generate(6, _random(4)), array)
    assert len({sample.tobytes() for sample in array}) == 6


@each_source
def test_kind_selects_the_source(source: SyntheticSource, layout: str, row: tuple[int, ...], dtype: type) -> None:
    assert TypeAdapter(SyntheticSource).validate_python(source.model_dump()) == source


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="'gaussian', 'mixture', 'textures', 'tiles', 'sinusoids'"):
        TypeAdapter(SyntheticSource).validate_python({"kind": "noise"})


def test_gaussian_is_standard_normal_and_isotropic() -> None:
    x = GaussianSettings(dim=6).generate(50_000, _random()).astype(np.float64)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.025)
    np.testing.assert_allclose(np.cov(x.T), np.eye(6), atol=0.04)
    np.testing.assert_allclose((x**4).mean(axis=0), 3, atol=0.25)


@pytest.mark.parametrize(("components", "dim", "separation"), [(2, 1, 5.0), (8, 2, 20.0), (64, 16, 8.0)])
def test_closest_centres_of_a_mixture_are_separation_apart(components: int, dim: int, separation: float) -> None:
    settings = MixtureSettings(components=components, dim=dim, separation=separation)
    centres = settings.centres(_random(7)).astype(np.float64)
    distances = np.linalg.norm(centres[:, None] - centres, axis=2)
    assert centres.shape == (components, dim)
    assert distances[~np.eye(components, dtype=bool)].min() == pytest.approx(separation, rel=1e-5)


def test_samples_of_a_mixture_are_unit_gaussians_around_its_centres() -> None:
    settings = MixtureSettings(components=6, dim=3, separation=20.0)
    centres = settings.centres(_random(7)).astype(np.float64)
    samples = settings.generate(12_000, _random(7)).astype(np.float64)
    distances = np.linalg.norm(samples[:, None] - centres, axis=2)
    components = distances.argmin(axis=1)
    deviations = samples - centres[components]
    assert distances.min(axis=1).max() < 7
    np.testing.assert_allclose(deviations.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(np.cov(deviations.T), np.eye(3), atol=0.06)
    np.testing.assert_allclose(np.bincount(components, minlength=6) / 12_000, 1 / 6, atol=0.02)


@pytest.mark.parametrize(
    ("height", "width", "room"), [(5, 5, 1), (9, 9, 1), (16, 16, 1), (16, 16, 3), (17, 12, 2), (7, 30, 2), (31, 31, 5)]
)
class TestTiles:
    """Floor plans of several sizes, even and odd."""

    @pytest.fixture
    def maps(self, height: int, width: int, room: int) -> NDArray[np.uint8]:
        return TilesSettings(height=height, width=width, room=room).generate(40, _random())

    def test_tiles_are_floor_wall_or_door(self, maps: NDArray[np.uint8]) -> None:
        assert {FLOOR, WALL} <= set(np.unique(maps)) <= {FLOOR, WALL, DOOR}
        assert (FLOOR, WALL, DOOR) == (0, 1, 2)

    def test_the_border_is_wall(self, maps: NDArray[np.uint8]) -> None:
        for border in (maps[:, 0], maps[:, -1], maps[:, :, 0], maps[:, :, -1]):
            assert (border == WALL).all()

    def test_every_room_is_reachable_through_doors(self, maps: NDArray[np.uint8]) -> None:
        for tiles in maps:
            assert np.array_equal(_reachable(tiles), tiles != WALL)

    def test_door_is_an_opening_in_a_wall(self, maps: NDArray[np.uint8]) -> None:
        for tiles in maps:
            for y, x in np.argwhere(tiles == DOOR):
                beside, across = {tiles[y, x - 1], tiles[y, x + 1]}, {tiles[y - 1, x], tiles[y + 1, x]}
                assert [beside, across] in ([{WALL}, {FLOOR}], [{FLOOR}, {WALL}])

    def test_sides_of_rooms_are_at_least_the_room_setting(self, maps: NDArray[np.uint8], room: int) -> None:
        for tiles in maps:
            for sides in _rooms(tiles):
                assert min(sides) >= min(room, tiles.shape[0] - 2, tiles.shape[1] - 2)


def _reachable(tiles: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the mask of the tiles that are reachable from the first floor tile without crossing a wall."""
    reached = np.zeros(tiles.shape, dtype=np.bool_)
    queue = [tuple(np.argwhere(tiles == FLOOR)[0])]
    while queue:
        y, x = queue.pop()
        if tiles[y, x] != WALL and not reached[y, x]:
            reached[y, x] = True
            queue += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return reached


def _rooms(tiles: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Return height and width of every room, and check that it is a rectangle of floor when its doors are closed."""
    closed, sides = np.where(tiles == DOOR, WALL, tiles), []
    while (closed == FLOOR).any():
        top, left = np.argwhere(closed == FLOOR)[0]
        height = int((closed[top:, left] != FLOOR).argmax())
        width = int((closed[top, left:] != FLOOR).argmax())
        assert (closed[top : top + height, left : left + width] == FLOOR).all()
        closed[top : top + height, left : left + width] = WALL
        sides.append((height, width))
    return sides


def test_large_map_has_one_room_more_than_doors() -> None:
    for tiles in TilesSettings().generate(20, _random()):
        assert len(_rooms(tiles)) == 1 + (tiles == DOOR).sum() > 2


@pytest.mark.parametrize("tones", [1, 3])
def test_amplitude_of_sinusoids_without_noise_is_bounded_by_the_tones(tones: int) -> None:
    x = SinusoidsSettings(tones=tones, length=256, channels=2, noise=0.0).generate(200, _random())
    peaks = np.abs(x).max(axis=2)
    assert (peaks <= tones + 1e-6).all()
    assert (peaks > 0.1).all()
    assert peaks.max() > 0.6 * tones


def test_single_tone_is_a_sinusoid() -> None:
    # A sinusoid of frequency w satisfies x[t-1] + x[t+1] = 2 cos(w) x[t].
    x = SinusoidsSettings(tones=1, length=128, noise=0.0).generate(50, _random()).astype(np.float64)[:, 0]
    centre, neighbours = x[:, 1:-1], x[:, :-2] + x[:, 2:]
    factor = (centre * neighbours).sum(axis=1) / (centre**2).sum(axis=1)
    np.testing.assert_allclose(neighbours, factor[:, None] * centre, atol=1e-5)
    assert (np.abs(factor) <= 2 + 1e-6).all()


def test_noise_has_the_configured_standard_deviation() -> None:
    quiet, noisy = (SinusoidsSettings(noise=noise).generate(100, _random()) for noise in (0.0, 0.5))
    assert (noisy - quiet).std() == pytest.approx(0.5, rel=0.03)


def test_channels_have_different_tones() -> None:
    x = SinusoidsSettings(channels=2, noise=0.0).generate(20, _random())
    assert not np.isclose(x[:, 0], x[:, 1], atol=0.05).all(axis=1).any()


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_textures_are_in_0_to_1_and_vary_within_and_between_images(channels: int) -> None:
    x = TexturesSettings(channels=channels, height=16, width=20).generate(100, _random())
    assert x.min() >= 0
    assert x.max() <= 1
    assert np.median(x.std(axis=(2, 3))) > 0.05
    assert (x.mean(axis=(1, 2, 3)).max() - x.mean(axis=(1, 2, 3)).min()) > 0.3


@pytest.mark.parametrize(
    ("settings", "key", "value"), [(TilesSettings, "height", 4), (MixtureSettings, "components", 1)]
)
def test_sizes_below_the_minimum_are_refused(settings: type, key: str, value: int) -> None:
    with pytest.raises(ValidationError, match=rf"\b{key}\b"):
        settings(**{key: value})


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("sinusoids", "tones", 2**63), ("sinusoids", "noise", 1e300), ("mixture", "separation", 1e300)],
)
def test_values_that_would_never_end_or_overflow_are_refused(kind: str, key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=rf"\b{key}\b"):
        TypeAdapter(SyntheticSource).validate_python({"kind": kind, key: value})
