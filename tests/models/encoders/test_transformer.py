import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from tests.models.encoders import assert_no_sample_sees_another
from vqtool.models.encoders.transformer import TransformerSettings, from_patches, to_patches

SIZES = [(1,), (37,), (1, 1), (9, 8), (3, 17)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tiny(**changes: int) -> TransformerSettings:
    return TransformerSettings(**{"num_tokens": 3, "patch_size": 4, "width": 8, "depth": 1, "heads": 2, **changes})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [1, 4])
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_any_size_becomes_the_positions_asked_for_and_comes_back(
    size: tuple[int, ...], patch: int, num_tokens: int
) -> None:
    settings = tiny(patch_size=patch, num_tokens=num_tokens)
    latents = settings.encoder(3, size, 5)(torch.rand(2, 3, *size))
    assert settings.grid(size) == (num_tokens,)
    assert latents.shape == (2, num_tokens, 5)
    assert settings.decoder(4, size, 5)(latents, size).shape == (2, 4, *size)


@pytest.mark.parametrize("size", [(7,), (5, 6)])
def test_no_sample_sees_another(size: tuple[int, ...]) -> None:
    settings = tiny(depth=2)
    encoder, decoder = settings.encoder(2, size, 4).double(), settings.decoder(2, size, 4).double()
    batch = torch.rand(3, 2, *size, dtype=torch.float64)
    assert_no_sample_sees_another(encoder, batch)
    assert_no_sample_sees_another(lambda latents: decoder(latents, size), encoder(batch).detach())


@pytest.mark.parametrize("size", [(9,), (6, 7)])
def test_every_position_sees_the_whole_sample(size: tuple[int, ...]) -> None:
    encoder = tiny(patch_size=3).encoder(1, size, 4).double()
    x = torch.rand(1, 1, *size, dtype=torch.float64, requires_grad=True)
    for latent in encoder(x)[0]:
        (gradient,) = torch.autograd.grad(latent.square().sum(), x, retain_graph=True)
        assert (gradient != 0).all()


def test_positions_differ() -> None:
    latents = tiny().encoder(1, (8,), 4)(torch.rand(1, 1, 8))
    assert not torch.allclose(latents[0, 0], latents[0, 1])


def test_places_differ() -> None:
    settings = tiny(patch_size=1)
    encoder = settings.encoder(1, (6,), 4)
    x = torch.rand(1, 1, 6)
    assert not torch.allclose(encoder(x), encoder(x.flip(2)), atol=1e-6)
    restored = settings.decoder(1, (6,), 4)(torch.rand(1, 3, 4), (6,))
    assert restored.flatten().unique().numel() == 6


def test_the_order_of_the_latents_matters_to_the_decoder() -> None:
    decoder = tiny().decoder(1, (8,), 4)
    latents = torch.rand(1, 3, 4)
    assert not torch.allclose(decoder(latents, (8,)), decoder(latents.flip(1), (8,)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("grid", [(1,), (3,), (2, 3), (1, 4)])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_are_cut_in_row_major_order(grid: tuple[int, ...], patch: int) -> None:
    x = torch.rand(2, 3, *(n * patch for n in grid))
    patches = to_patches(x, patch)
    assert patches.shape == (2, math.prod(grid), 3 * patch ** len(grid))
    for number, place in enumerate(itertools.product(*(range(n) for n in grid))):
        window = x
        for axis, at in enumerate(place, start=2):
            window = window.narrow(axis, at * patch, patch)
        assert torch.equal(patches[:, number], window.flatten(1))


@pytest.mark.parametrize("grid", [(1,), (3,), (2, 3), (1, 4)])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_are_put_back(grid: tuple[int, ...], patch: int) -> None:
    x = torch.rand(2, 3, *(n * patch for n in grid))
    assert torch.equal(from_patches(to_patches(x, patch), grid, patch), x)


@pytest.mark.parametrize(("width", "heads"), [(8, 3), (10, 4), (4, 8)])
def test_heads_must_divide_the_width(width: int, heads: int) -> None:
    with pytest.raises(ValidationError, match=f"width {width} .* {heads} heads"):
        TransformerSettings(width=width, heads=heads)


def test_the_default_heads_must_divide_a_width_too() -> None:
    with pytest.raises(ValidationError, match=r"width 30 .* 4 heads"):
        TransformerSettings(width=30)


def test_a_trained_network_takes_one_size_alone() -> None:
    assert not TransformerSettings.any_size
