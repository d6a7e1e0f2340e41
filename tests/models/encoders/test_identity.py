import math

import pytest
import torch

from tests.models.encoders import assert_no_sample_sees_another
from vqtool.models.encoders.identity import IdentitySettings
from vqtool.models.encoders.mlp import MlpSettings

SIZES = [(), (1,), (37,), (1, 1), (9, 8)]


@pytest.mark.parametrize("size", SIZES)
def test_each_place_becomes_one_vector_in_row_major_order(size: tuple[int, ...]) -> None:
    x = torch.rand(2, 3, *size)
    latents = IdentitySettings().encoder(3, size, 3)(x)
    grid = IdentitySettings().grid(size)
    assert latents.shape == (2, math.prod(grid), 3)
    flat = x.reshape(2, 3, -1)
    for position in range(latents.shape[1]):
        assert torch.equal(latents[:, position], flat[:, :, position])


@pytest.mark.parametrize("size", SIZES)
def test_the_decoder_gives_back_what_went_in(size: tuple[int, ...]) -> None:
    x = torch.rand(2, 3, *size)
    settings = IdentitySettings()
    restored = settings.decoder(3, size, 3)(settings.encoder(3, size, 3)(x), size)
    assert torch.equal(restored, x)


def test_no_sample_sees_another() -> None:
    encoder = IdentitySettings().encoder(3, (4, 5), 3)
    assert_no_sample_sees_another(encoder, torch.rand(3, 3, 4, 5, dtype=torch.float64))


def test_there_is_nothing_to_train() -> None:
    settings = IdentitySettings()
    assert not [*settings.encoder(3, (), 3).parameters(), *settings.decoder(3, (), 3).parameters()]


def test_its_vectors_are_as_wide_as_the_data_whatever_the_codes_are() -> None:
    assert IdentitySettings().latent_width(3, 5) == 3
    assert MlpSettings().latent_width(3, 5) == 5


def test_its_own_width_is_that_of_the_data() -> None:
    assert IdentitySettings().dim(7) == 7
    assert IdentitySettings().grid(()) == (1,)
