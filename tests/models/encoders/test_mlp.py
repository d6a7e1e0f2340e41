import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.models.encoders import assert_no_sample_sees_another
from vqtool.models.encoders.mlp import MlpSettings


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("channels", [1, 5])
def test_a_vector_becomes_positions_and_comes_back(num_tokens: int, layers: int, channels: int) -> None:
    settings = MlpSettings(width=8, layers=layers, num_tokens=num_tokens)
    latents = settings.encoder(channels, (), 4)(torch.rand(2, channels))
    assert settings.grid(()) == (num_tokens,)
    assert latents.shape == (2, num_tokens, 4)
    assert settings.decoder(channels, (), 4)(latents, ()).shape == (2, channels)


def test_no_sample_sees_another() -> None:
    settings = MlpSettings(width=8, layers=2, num_tokens=3)
    encoder, decoder = settings.encoder(5, (), 4).double(), settings.decoder(5, (), 4).double()
    batch = torch.rand(3, 5, dtype=torch.float64)
    assert_no_sample_sees_another(encoder, batch)
    assert_no_sample_sees_another(lambda latents: decoder(latents, ()), encoder(batch).detach())


def test_without_hidden_layers_it_is_one_matrix() -> None:
    encoder = MlpSettings(layers=0, num_tokens=2).encoder(5, (), 3)
    (linear,) = [module for module in encoder.modules() if isinstance(module, nn.Linear)]
    x = torch.rand(4, 5)
    expected = x @ linear.weight.T + linear.bias
    torch.testing.assert_close(encoder(x)[:, 1], expected[:, 3:])


def test_hidden_layers_have_the_width_asked_for() -> None:
    encoder = MlpSettings(width=11, layers=2, num_tokens=3).encoder(5, (), 4)
    shapes = [tuple(module.weight.shape) for module in encoder.modules() if isinstance(module, nn.Linear)]
    assert shapes == [(11, 5), (11, 11), (12, 11)]


def test_its_own_width_is_the_hidden_one() -> None:
    assert MlpSettings(width=11).dim(5) == 11


@pytest.mark.parametrize("wrong", [{"width": 0}, {"layers": -1}, {"num_tokens": 0}, {"width": 8.0}])
def test_sizes_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        MlpSettings.model_validate(wrong)
