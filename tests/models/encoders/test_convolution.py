import math

import pytest
import torch

from tests.models.encoders import assert_no_sample_sees_another
from vqtool.models.encoders.conv1d import Conv1dSettings
from vqtool.models.encoders.conv2d import Conv2dSettings
from vqtool.models.encoders.convolution import ConvSettings

SIZES = [(1,), (2,), (37,), (64,), (1, 1), (2, 1), (9, 8), (8, 37)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def family(size: tuple[int, ...]) -> type[ConvSettings]:
    return Conv1dSettings if len(size) == 1 else Conv2dSettings


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("downsamples", "res_blocks"), [(0, 0), (1, 1), (3, 0)])
def test_any_size_comes_back(size: tuple[int, ...], downsamples: int, res_blocks: int) -> None:
    settings = family(size)(width=8, downsamples=downsamples, res_blocks=res_blocks)
    latents = settings.encoder(3, size, 5)(torch.rand(2, 3, *size))
    grid = settings.grid(size)
    assert grid == tuple(math.ceil(n / 2**downsamples) for n in size)
    assert latents.shape == (2, math.prod(grid), 5)
    assert settings.decoder(4, size, 5)(latents, size).shape == (2, 4, *size)


@pytest.mark.parametrize("size", [(1,), (1, 1)])
@pytest.mark.parametrize("width", [2, 8, 12])
def test_a_single_sample_of_a_single_place_goes_through(size: tuple[int, ...], width: int) -> None:
    settings = family(size)(width=width, downsamples=1, res_blocks=1)
    latents = settings.encoder(3, size, 5)(torch.rand(1, 3, *size))
    assert settings.decoder(3, size, 5)(latents, size).shape == (1, 3, *size)


@pytest.mark.parametrize("size", [(2,), (2, 2)])
def test_a_grid_of_one_place_still_tells_samples_apart(size: tuple[int, ...]) -> None:
    encoder = family(size)(width=8, downsamples=1, res_blocks=0).encoder(3, size, 5)
    first, second = encoder(torch.randn(2, 3, *size))
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("size", [(9,), (5, 6)])
def test_no_sample_sees_another(size: tuple[int, ...]) -> None:
    settings = family(size)(width=8, downsamples=2, res_blocks=1)
    encoder, decoder = settings.encoder(2, size, 4).double(), settings.decoder(2, size, 4).double()
    batch = torch.rand(3, 2, *size, dtype=torch.float64)
    assert_no_sample_sees_another(encoder, batch)
    assert_no_sample_sees_another(lambda latents: decoder(latents, size), encoder(batch).detach())


def test_one_network_takes_images_of_every_size() -> None:
    settings = Conv2dSettings(width=8, downsamples=1, res_blocks=1)
    encoder, decoder = settings.encoder(1, (8, 8), 4), settings.decoder(1, (8, 8), 4)
    assert settings.any_size
    assert decoder(encoder(torch.rand(2, 1, 5, 12)), (5, 12)).shape == (2, 1, 5, 12)


def test_positions_are_row_major() -> None:
    settings = Conv2dSettings(width=8, downsamples=1, res_blocks=0)
    encoder = settings.encoder(1, (12, 16), 4)
    x = torch.rand(1, 1, 12, 16)
    changed = x.clone()
    changed[0, 0, 6, 10] += 1
    row, column = divmod(int((encoder(changed) - encoder(x)).abs().sum(dim=2).argmax()), 8)
    assert row in (2, 3, 4)
    assert column in (4, 5, 6)


def test_blocks_are_counted_a_stage() -> None:
    def weights(res_blocks: int) -> int:
        return sum(
            p.numel()
            for p in Conv1dSettings(width=4, downsamples=3, res_blocks=res_blocks).encoder(1, (8,), 2).parameters()
        )

    assert weights(3) - weights(2) == weights(2) - weights(1) == 3 * 2 * (4 * 4 * 3 + 4 + 2 * 4)


def test_its_own_width_is_the_hidden_one() -> None:
    assert Conv2dSettings(width=24).dim(3) == 24
