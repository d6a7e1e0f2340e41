import math

import pytest
import torch

from tests.models.encoders import assert_samples_are_independent
from vqtool.models.encoders.conv import (
    Conv1dSettings,
    Conv2dSettings,
    ConvSettings,
    crop,
    pad_to_multiple,
    strided_grid,
)

SIZES = [(1,), (2,), (37,), (64,), (1, 1), (2, 1), (9, 8), (8, 37)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def family(size: tuple[int, ...]) -> type[ConvSettings]:
    return Conv1dSettings if len(size) == 1 else Conv2dSettings


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("downsamples", "res_blocks"), [(0, 0), (1, 1), (3, 0)])
def test_encoder_and_decoder_shapes_for_any_size(size: tuple[int, ...], downsamples: int, res_blocks: int) -> None:
    settings = family(size)(width=8, downsamples=downsamples, res_blocks=res_blocks)
    latents = settings.build_encoder(3, size, 5)(torch.rand(2, 3, *size))
    grid = settings.grid(size)
    assert grid == tuple(math.ceil(n / 2**downsamples) for n in size)
    assert latents.shape == (2, math.prod(grid), 5)
    assert settings.build_decoder(4, size, 5)(latents, size).shape == (2, 4, *size)


@pytest.mark.parametrize("size", [(1,), (1, 1)])
@pytest.mark.parametrize("width", [2, 8, 12])
def test_batch_of_one_sample_with_one_position(size: tuple[int, ...], width: int) -> None:
    settings = family(size)(width=width, downsamples=1, res_blocks=1)
    latents = settings.build_encoder(3, size, 5)(torch.rand(1, 3, *size))
    assert settings.build_decoder(3, size, 5)(latents, size).shape == (1, 3, *size)


@pytest.mark.parametrize("size", [(2,), (2, 2)])
def test_normalisation_on_a_one_position_grid_keeps_samples_different(size: tuple[int, ...]) -> None:
    encoder = family(size)(width=8, downsamples=1, res_blocks=0).build_encoder(3, size, 5)
    first, second = encoder(torch.randn(2, 3, *size))
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("size", [(9,), (5, 6)])
def test_samples_of_a_batch_are_independent(size: tuple[int, ...]) -> None:
    settings = family(size)(width=8, downsamples=2, res_blocks=1)
    encoder, decoder = settings.build_encoder(2, size, 4).double(), settings.build_decoder(2, size, 4).double()
    batch = torch.rand(3, 2, *size, dtype=torch.float64)
    assert_samples_are_independent(encoder, batch)
    assert_samples_are_independent(lambda latents: decoder(latents, size), encoder(batch).detach())


def test_trained_size_does_not_limit_the_image_size() -> None:
    settings = Conv2dSettings(width=8, downsamples=1, res_blocks=1)
    encoder, decoder = settings.build_encoder(1, (8, 8), 4), settings.build_decoder(1, (8, 8), 4)
    assert settings.any_size
    assert decoder(encoder(torch.rand(2, 1, 5, 12)), (5, 12)).shape == (2, 1, 5, 12)


def test_tokens_are_in_row_major_order() -> None:
    settings = Conv2dSettings(width=8, downsamples=1, res_blocks=0)
    encoder = settings.build_encoder(1, (12, 16), 4)
    x = torch.rand(1, 1, 12, 16)
    changed = x.clone()
    changed[0, 0, 6, 10] += 1
    row, column = divmod(int((encoder(changed) - encoder(x)).abs().sum(dim=2).argmax()), 8)
    assert row in (2, 3, 4)
    assert column in (4, 5, 6)


def test_res_blocks_are_per_stage() -> None:
    def parameters(res_blocks: int) -> int:
        settings = Conv1dSettings(width=4, downsamples=3, res_blocks=res_blocks)
        return sum(parameter.numel() for parameter in settings.build_encoder(1, (8,), 2).parameters())

    assert parameters(3) - parameters(2) == parameters(2) - parameters(1) == 3 * 2 * (4 * 4 * 3 + 4 + 2 * 4)


def test_default_code_dimension_is_the_hidden_width() -> None:
    assert Conv2dSettings(width=24).default_dim(3) == 24


# Padding and cropping


def test_sequences_are_padded_with_the_last_value() -> None:
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]])
    assert pad_to_multiple(x, 4).tolist() == [[[1, 2, 3, 4, 5, 5, 5, 5]]]


def test_images_are_padded_at_the_bottom_and_right() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]])
    assert pad_to_multiple(x, 2)[0, 0].tolist() == [[1, 2, 3, 3], [4, 5, 6, 6], [7, 8, 9, 9], [7, 8, 9, 9]]


def test_each_axis_is_padded_independently() -> None:
    assert pad_to_multiple(torch.zeros(2, 3, 4, 5), 4).shape == (2, 3, 4, 8)


def test_multiples_of_the_stride_are_not_padded() -> None:
    x = torch.rand(2, 3, 4, 8)
    assert pad_to_multiple(x, 4) is x
    assert pad_to_multiple(torch.rand(2, 3), 4).shape == (2, 3)


@pytest.mark.parametrize("size", [(1,), (7,), (1, 1), (9, 8), (5, 11)])
@pytest.mark.parametrize("stride", [1, 2, 4, 32])
def test_cropping_inverts_padding(size: tuple[int, ...], stride: int) -> None:
    x = torch.rand(2, 3, *size)
    padded = pad_to_multiple(x, stride)
    assert tuple(n // stride for n in padded.shape[2:]) == strided_grid(size, stride)
    assert all(n % stride == 0 for n in padded.shape[2:])
    assert torch.equal(crop(padded, size), x)


def test_strided_grid_rounds_up() -> None:
    assert strided_grid((1, 4, 5, 8, 9), 4) == (1, 1, 2, 2, 3)
    assert strided_grid((), 4) == ()
