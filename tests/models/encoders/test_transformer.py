import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from tests.models.encoders import assert_samples_are_independent
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
def test_num_tokens_is_independent_of_the_sample_size(size: tuple[int, ...], patch: int, num_tokens: int) -> None:
    settings = tiny(patch_size=patch, num_tokens=num_tokens)
    latents = settings.build_encoder(3, size, 5)(torch.rand(2, 3, *size))
    assert settings.grid(size) == (num_tokens,)
    assert latents.shape == (2, num_tokens, 5)
    assert settings.build_decoder(4, size, 5)(latents, size).shape == (2, 4, *size)


@pytest.mark.parametrize("size", [(7,), (5, 6)])
def test_samples_of_a_batch_are_independent(size: tuple[int, ...]) -> None:
    settings = tiny(depth=2)
    encoder, decoder = settings.build_encoder(2, size, 4).double(), settings.build_decoder(2, size, 4).double()
    batch = torch.rand(3, 2, *size, dtype=torch.float64)
    assert_samples_are_independent(encoder, batch)
    assert_samples_are_independent(lambda latents: decoder(latents, size), encoder(batch).detach())


@pytest.mark.parametrize("size", [(9,), (6, 7)])
def test_every_token_depends_on_the_whole_sample(size: tuple[int, ...]) -> None:
    encoder = tiny(patch_size=3).build_encoder(1, size, 4).double()
    x = torch.rand(1, 1, *size, dtype=torch.float64, requires_grad=True)
    for latent in encoder(x)[0]:
        (gradient,) = torch.autograd.grad(latent.square().sum(), x, retain_graph=True)
        assert (gradient != 0).all()


def test_tokens_of_a_sample_differ() -> None:
    latents = tiny().build_encoder(1, (8,), 4)(torch.rand(1, 1, 8))
    assert not torch.allclose(latents[0, 0], latents[0, 1])


def test_patch_positions_matter_to_encoder_and_decoder() -> None:
    settings = tiny(patch_size=1)
    encoder = settings.build_encoder(1, (6,), 4)
    x = torch.rand(1, 1, 6)
    assert not torch.allclose(encoder(x), encoder(x.flip(2)), atol=1e-6)
    restored = settings.build_decoder(1, (6,), 4)(torch.rand(1, 3, 4), (6,))
    assert restored.flatten().unique().numel() == 6


def test_order_of_the_latents_matters_to_the_decoder() -> None:
    decoder = tiny().build_decoder(1, (8,), 4)
    latents = torch.rand(1, 3, 4)
    assert not torch.allclose(decoder(latents, (8,)), decoder(latents.flip(1), (8,)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("grid", [(1,), (3,), (2, 3), (1, 4)])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_are_cut_in_row_major_order(grid: tuple[int, ...], patch: int) -> None:
    x = torch.rand(2, 3, *(n * patch for n in grid))
    patches = to_patches(x, patch)
    assert patches.shape == (2, math.prod(grid), 3 * patch ** len(grid))
    for number, position in enumerate(itertools.product(*(range(n) for n in grid))):
        window = x
        for axis, index in enumerate(position, start=2):
            window = window.narrow(axis, index * patch, patch)
        assert torch.equal(patches[:, number], window.flatten(1))


@pytest.mark.parametrize("grid", [(1,), (3,), (2, 3), (1, 4)])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_from_patches_inverts_to_patches(grid: tuple[int, ...], patch: int) -> None:
    x = torch.rand(2, 3, *(n * patch for n in grid))
    assert torch.equal(from_patches(to_patches(x, patch), grid, patch), x)


@pytest.mark.parametrize(("width", "heads"), [(8, 3), (10, 4), (4, 8)])
def test_width_must_be_a_multiple_of_heads(width: int, heads: int) -> None:
    with pytest.raises(ValidationError, match=f"width {width} .* {heads} heads"):
        TransformerSettings(width=width, heads=heads)


def test_width_must_be_a_multiple_of_the_default_heads() -> None:
    with pytest.raises(ValidationError, match=r"width 30 .* 4 heads"):
        TransformerSettings(width=30)


def test_trained_network_accepts_one_size_only() -> None:
    assert not TransformerSettings.any_size
