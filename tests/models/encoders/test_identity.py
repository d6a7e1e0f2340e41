import math

import pytest
import torch

from tests.models.encoders import assert_samples_are_independent
from vqtool.models.encoders.identity import IdentitySettings
from vqtool.models.encoders.mlp import MlpSettings

SIZES = [(), (1,), (37,), (1, 1), (9, 8)]


@pytest.mark.parametrize("size", SIZES)
def test_latents_are_the_channels_of_each_position_in_row_major_order(size: tuple[int, ...]) -> None:
    x = torch.rand(2, 3, *size)
    latents = IdentitySettings().build_encoder(3, size, 3)(x)
    grid = IdentitySettings().grid(size)
    assert latents.shape == (2, math.prod(grid), 3)
    flat = x.reshape(2, 3, -1)
    for position in range(latents.shape[1]):
        assert torch.equal(latents[:, position], flat[:, :, position])


@pytest.mark.parametrize("size", SIZES)
def test_decoder_inverts_encoder(size: tuple[int, ...]) -> None:
    x = torch.rand(2, 3, *size)
    settings = IdentitySettings()
    restored = settings.build_decoder(3, size, 3)(settings.build_encoder(3, size, 3)(x), size)
    assert torch.equal(restored, x)


def test_samples_of_a_batch_are_independent() -> None:
    encoder = IdentitySettings().build_encoder(3, (4, 5), 3)
    assert_samples_are_independent(encoder, torch.rand(3, 3, 4, 5, dtype=torch.float64))


def test_networks_have_no_parameters() -> None:
    settings = IdentitySettings()
    assert not [*settings.build_encoder(3, (), 3).parameters(), *settings.build_decoder(3, (), 3).parameters()]


def test_latent_width_is_the_number_of_channels_for_any_code_dimension() -> None:
    assert IdentitySettings().latent_dim(3, 5) == 3
    assert MlpSettings().latent_dim(3, 5) == 5


def test_default_code_dimension_is_the_number_of_channels() -> None:
    assert IdentitySettings().default_dim(7) == 7
    assert IdentitySettings().grid(()) == (1,)
