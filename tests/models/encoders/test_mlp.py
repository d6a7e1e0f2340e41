import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.models.encoders import assert_samples_are_independent
from vqtool.models.encoders.mlp import MlpSettings


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("channels", [1, 5])
def test_encoder_and_decoder_shapes(num_tokens: int, layers: int, channels: int) -> None:
    settings = MlpSettings(width=8, layers=layers, num_tokens=num_tokens)
    latents = settings.build_encoder(channels, (), 4)(torch.rand(2, channels))
    assert settings.grid(()) == (num_tokens,)
    assert latents.shape == (2, num_tokens, 4)
    assert settings.build_decoder(channels, (), 4)(latents, ()).shape == (2, channels)


def test_samples_of_a_batch_are_independent() -> None:
    settings = MlpSettings(width=8, layers=2, num_tokens=3)
    encoder, decoder = settings.build_encoder(5, (), 4).double(), settings.build_decoder(5, (), 4).double()
    batch = torch.rand(3, 5, dtype=torch.float64)
    assert_samples_are_independent(encoder, batch)
    assert_samples_are_independent(lambda latents: decoder(latents, ()), encoder(batch).detach())


def test_zero_hidden_layers_is_one_linear_layer() -> None:
    encoder = MlpSettings(layers=0, num_tokens=2).build_encoder(5, (), 3)
    (linear,) = [module for module in encoder.modules() if isinstance(module, nn.Linear)]
    x = torch.rand(4, 5)
    expected = x @ linear.weight.T + linear.bias
    torch.testing.assert_close(encoder(x)[:, 1], expected[:, 3:])


def test_hidden_layers_have_the_configured_width() -> None:
    encoder = MlpSettings(width=11, layers=2, num_tokens=3).build_encoder(5, (), 4)
    shapes = [tuple(module.weight.shape) for module in encoder.modules() if isinstance(module, nn.Linear)]
    assert shapes == [(11, 5), (11, 11), (12, 11)]


def test_default_code_dimension_is_the_hidden_width() -> None:
    assert MlpSettings(width=11).default_dim(5) == 11


@pytest.mark.parametrize("wrong", [{"width": 0}, {"layers": -1}, {"num_tokens": 0}, {"width": 8.0}])
def test_invalid_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        MlpSettings.model_validate(wrong)
