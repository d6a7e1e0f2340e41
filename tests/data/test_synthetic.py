"""Synthetic sources: made from a seed alone, and with the answers that they promise."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from vqtool.data.synthetic import SyntheticSource
from vqtool.data.synthetic.gaussian import GaussianSettings
from vqtool.data.synthetic.mixture import MixtureSettings
from vqtool.data.synthetic.sinusoids import SinusoidsSettings
from vqtool.data.synthetic.textures import TexturesSettings
from vqtool.data.synthetic.tiles import DOOR, FLOOR, WALL, TilesSettings

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
def test_shape_type_and_layout(source: SyntheticSource, layout: str, row: tuple[int, ...], dtype: type) -> None:
    for samples in (1, 7):
        made = source.generate(samples, _random())
        assert (made.shape, made.dtype, source.layout) == ((samples, *row), dtype, layout)


@each_source
def test_samples_are_a_function_of_the_seed(
    source: SyntheticSource, layout: str, row: tuple[int, ...], dtype: type
) -> None:
    made = source.generate(6, _random(3))
    assert np.array_equal(source.generate(6, _random(3)), made)
    assert not np.array_equal(source.generate(6, _random(4)), made)
    assert len({sample.tobytes() for sample in made}) == 6


@each_source
def test_a_source_is_chosen_by_its_kind(
    source: SyntheticSource, layout: str, row: tuple[int, ...], dtype: type
) -> None:
    assert TypeAdapter(SyntheticSource).validate_python(source.model_dump()) == source


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="'gaussian', 'mixture', 'textures', 'tiles', 'sinusoids'"):
        TypeAdapter(SyntheticSource).validate_python({"kind": "noise"})


def test_a_gaussian_has_standard_moments_and_no_direction() -> None:
    x = GaussianSettings(dim=6).generate(50_000, _random()).astype(np.float64)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.025)
    np.testing.assert_allclose(np.cov(x.T), np.eye(6), atol=0.04)
    np.testing.assert_allclose((x**4).mean(axis=0), 3, atol=0.25)


@pytest.mark.parametrize(("components", "dim", "separation"), [(2, 1, 5.0), (8, 2, 20.0), (64, 16, 8.0)])
def test_the_closest_centres_are_as_far_apart_as_said(components: int, dim: int, separation: float) -> None:
    settings = MixtureSettings(components=components, dim=dim, separation=separation)
    centres = settings.centres(_random(7)).astype(np.float64)
    distances = np.linalg.norm(centres[:, None] - centres, axis=2)
    assert centres.shape == (components, dim)
    assert distances[~np.eye(components, dtype=bool)].min() == pytest.approx(separation, rel=1e-5)


def test_samples_of_a_mixture_lie_around_its_centres() -> None:
    settings = MixtureSettings(components=6, dim=3, separation=20.0)
    centres = settings.centres(_random(7)).astype(np.float64)
    samples = settings.generate(12_000, _random(7)).astype(np.float64)
    distances = np.linalg.norm(samples[:, None] - centres, axis=2)
    owners = distances.argmin(axis=1)
    around = samples - centres[owners]
    assert distances.min(axis=1).max() < 7
    np.testing.assert_allclose(around.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(np.cov(around.T), np.eye(3), atol=0.06)
    np.testing.assert_allclose(np.bincount(owners, minlength=6) / 12_000, 1 / 6, atol=0.02)


@pytest.mark.parametrize(
    ("height", "width", "room"), [(5, 5, 1), (9, 9, 1), (16, 16, 1), (16, 16, 3), (17, 12, 2), (7, 30, 2), (31, 31, 5)]
)
class TestTiles:
    """Floor plans of several sizes, even and odd."""

    @pytest.fixture
    def maps(self, height: int, width: int, room: int) -> NDArray[np.uint8]:
        return TilesSettings(height=height, width=width, room=room).generate(40, _random())

    def test_tiles_are_of_three_kinds(self, maps: NDArray[np.uint8]) -> None:
        assert {FLOOR, WALL} <= set(np.unique(maps)) <= {FLOOR, WALL, DOOR}
        assert (FLOOR, WALL, DOOR) == (0, 1, 2)

    def test_the_border_is_wall(self, maps: NDArray[np.uint8]) -> None:
        for border in (maps[:, 0], maps[:, -1], maps[:, :, 0], maps[:, :, -1]):
            assert (border == WALL).all()

    def test_every_room_is_reached_by_doors(self, maps: NDArray[np.uint8]) -> None:
        for tiles in maps:
            assert np.array_equal(_reached(tiles), tiles != WALL)

    def test_a_door_leads_through_a_wall(self, maps: NDArray[np.uint8]) -> None:
        for tiles in maps:
            for y, x in np.argwhere(tiles == DOOR):
                beside, across = {tiles[y, x - 1], tiles[y, x + 1]}, {tiles[y - 1, x], tiles[y + 1, x]}
                assert [beside, across] in ([{WALL}, {FLOOR}], [{FLOOR}, {WALL}])

    def test_no_side_of_a_room_is_shorter_than_said(self, maps: NDArray[np.uint8], room: int) -> None:
        for tiles in maps:
            for sides in _rooms(tiles):
                assert min(sides) >= min(room, tiles.shape[0] - 2, tiles.shape[1] - 2)


def _reached(tiles: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """What can be reached from the first floor tile without going through a wall."""
    reached = np.zeros(tiles.shape, dtype=np.bool_)
    ahead = [tuple(np.argwhere(tiles == FLOOR)[0])]
    while ahead:
        y, x = ahead.pop()
        if tiles[y, x] != WALL and not reached[y, x]:
            reached[y, x] = True
            ahead += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return reached


def _rooms(tiles: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Height and width of every room: a rectangle of floor, which its doors close."""
    closed, sides = np.where(tiles == DOOR, WALL, tiles), []
    while (closed == FLOOR).any():
        top, left = np.argwhere(closed == FLOOR)[0]
        height = int((closed[top:, left] != FLOOR).argmax())
        width = int((closed[top, left:] != FLOOR).argmax())
        assert (closed[top : top + height, left : left + width] == FLOOR).all()
        closed[top : top + height, left : left + width] = WALL
        sides.append((height, width))
    return sides


def test_a_large_map_has_several_rooms() -> None:
    for tiles in TilesSettings().generate(20, _random()):
        assert len(_rooms(tiles)) == 1 + (tiles == DOOR).sum() > 2


@pytest.mark.parametrize("tones", [1, 3])
def test_sinusoids_without_noise_are_as_loud_as_their_tones(tones: int) -> None:
    x = SinusoidsSettings(tones=tones, length=256, channels=2, noise=0.0).generate(200, _random())
    loudest = np.abs(x).max(axis=2)
    assert (loudest <= tones + 1e-6).all()
    assert (loudest > 0.1).all()
    assert loudest.max() > 0.6 * tones


def test_a_single_tone_is_a_sinusoid() -> None:
    # Of every sinusoid, and of little else, x[t-1] + x[t+1] = 2 cos(w) x[t].
    x = SinusoidsSettings(tones=1, length=128, noise=0.0).generate(50, _random()).astype(np.float64)[:, 0]
    inner, sides = x[:, 1:-1], x[:, :-2] + x[:, 2:]
    factor = (inner * sides).sum(axis=1) / (inner**2).sum(axis=1)
    np.testing.assert_allclose(sides, factor[:, None] * inner, atol=1e-5)
    assert (np.abs(factor) <= 2 + 1e-6).all()


def test_noise_is_as_strong_as_said() -> None:
    quiet, noisy = (SinusoidsSettings(noise=noise).generate(100, _random()) for noise in (0.0, 0.5))
    assert (noisy - quiet).std() == pytest.approx(0.5, rel=0.03)


def test_channels_have_tones_of_their_own() -> None:
    x = SinusoidsSettings(channels=2, noise=0.0).generate(20, _random())
    assert not np.isclose(x[:, 0], x[:, 1], atol=0.05).all(axis=1).any()


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_textures_lie_between_black_and_white_and_vary(channels: int) -> None:
    x = TexturesSettings(channels=channels, height=16, width=20).generate(100, _random())
    assert x.min() >= 0
    assert x.max() <= 1
    assert np.median(x.std(axis=(2, 3))) > 0.05
    assert (x.mean(axis=(1, 2, 3)).max() - x.mean(axis=(1, 2, 3)).min()) > 0.3


@pytest.mark.parametrize("make", [lambda: TilesSettings(height=4), lambda: MixtureSettings(components=1)])
def test_sizes_too_small_for_what_is_promised_are_refused(make: type) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to"):
        make()


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("sinusoids", "tones", 2**63), ("sinusoids", "noise", 1e300), ("mixture", "separation", 1e300)],
)
def test_what_would_never_end_or_not_be_finite_is_refused(kind: str, key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=f"{key}\n.*less than or equal to"):
        TypeAdapter(SyntheticSource).validate_python({"kind": kind, key: value})
