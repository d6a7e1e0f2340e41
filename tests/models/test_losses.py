"""Reconstruction losses compared with loops over their formulas."""

import math

import pytest
import torch
from pydantic import ValidationError

from vqtool.errors import ConfigError
from vqtool.models.losses import RECONSTRUCTION_LOSSES, LossSettings, reconstruction_loss, resolve_reconstruction

SIZES = [(), (5,), (2, 3)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pairs(prediction, target):
    """Return the pairs of corresponding values of two tensors."""
    return list(zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True))


def columns(x):
    """Return (B, C, *size) as one list of C values per sample and position."""
    return x.movedim(1, -1).flatten(0, -2).tolist()


def mse(prediction, target):
    errors = [(p - t) ** 2 for p, t in pairs(prediction, target)]
    return sum(errors) / len(errors)


def l1(prediction, target):
    errors = [abs(p - t) for p, t in pairs(prediction, target)]
    return sum(errors) / len(errors)


def cosine(prediction, target):
    cosines = [
        sum(a * b for a, b in zip(p, t, strict=True)) / math.hypot(*p) / math.hypot(*t)
        for p, t in zip(columns(prediction), columns(target), strict=True)
    ]
    return 1 - sum(cosines) / len(cosines)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "expected"), [("mse", mse), ("l1", l1), ("cosine", cosine)])
def test_losses_of_continuous_values(name, expected, size):
    prediction, target = normal(4, 3, *size), normal(4, 3, *size, seed=1)
    assert float(reconstruction_loss(name, prediction, target)) == pytest.approx(expected(prediction, target), rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_cross_entropy_of_classes(size):
    logits = 3 * normal(4, 6, *size)
    target = torch.randint(0, 6, (4, *size), generator=torch.Generator().manual_seed(1))
    losses = [
        math.log(sum(math.exp(logit) for logit in column)) - column[index]
        for column, index in zip(columns(logits), target.flatten().tolist(), strict=True)
    ]
    assert float(reconstruction_loss("cross_entropy", logits, target)) == pytest.approx(
        sum(losses) / len(losses), rel=1e-5
    )


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        ("mse", [[2 * 2.0 / 4, 2 * -1.0 / 4], [0.0, 2 * 3.0 / 4]]),
        ("l1", [[1 / 4, -1 / 4], [0.0, 1 / 4]]),
        # 1 - cosine has the gradient -(t/|t| - cos p/|p|) / |p|, and is a mean over two rows: (3, 0) and (1, 1) have
        # cosine 1/sqrt(2), (0, 4) and (0, 1) have cosine 1.
        ("cosine", [[0.0, -1 / math.sqrt(2) / 3 / 2], [0.0, 0.0]]),
    ],
)
def test_gradients_with_respect_to_the_prediction(name, gradient):
    prediction = torch.tensor([[3.0, 0.0], [0.0, 4.0]], requires_grad=True)
    target = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    reconstruction_loss(name, prediction, target).backward()
    torch.testing.assert_close(prediction.grad, torch.tensor(gradient), atol=1e-6, rtol=1e-6)


def test_cosine_ignores_the_length_of_vectors():
    x = normal(4, 3, 5)
    assert float(reconstruction_loss("cosine", x, 7 * x)) == pytest.approx(0, abs=1e-6)
    assert float(reconstruction_loss("cosine", x, -x)) == pytest.approx(2)


@pytest.mark.parametrize("name", ["mse", "l1", "cosine"])
def test_losses_are_means_over_the_batch(name):
    prediction, target = normal(4, 3, 5), normal(4, 3, 5, seed=1)
    halves = [reconstruction_loss(name, prediction[half], target[half]) for half in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(reconstruction_loss(name, prediction, target), sum(halves) / 2)


def test_half_precision_predictions_are_compared_in_float32():
    prediction, target = normal(4, 3).bfloat16(), normal(4, 3, seed=1)
    assert float(reconstruction_loss("mse", prediction, target)) == pytest.approx(mse(prediction, target), rel=1e-5)
    assert reconstruction_loss("cross_entropy", prediction, torch.tensor([0, 1, 2, 0])).dtype == torch.float32


def test_auto_is_mse_for_values_and_cross_entropy_for_classes():
    settings = LossSettings(commitment=0.5, entropy=0.1)
    assert resolve_reconstruction(settings, None) == LossSettings(reconstruction="mse", commitment=0.5, entropy=0.1)
    assert resolve_reconstruction(settings, 7).reconstruction == "cross_entropy"


@pytest.mark.parametrize("name", RECONSTRUCTION_LOSSES)
def test_explicit_loss_is_not_changed(name):
    settings = LossSettings(reconstruction=name)
    assert resolve_reconstruction(settings, 7 if name == "cross_entropy" else None) == settings


@pytest.mark.parametrize("name", ["mse", "l1", "cosine"])
def test_losses_of_values_are_refused_for_classes(name):
    message = rf"^loss\.reconstruction: {name} .*classes; .*cross_entropy or auto$"
    with pytest.raises(ConfigError, match=message):
        resolve_reconstruction(LossSettings(reconstruction=name), 7)


def test_cross_entropy_is_refused_for_values():
    message = r"^loss\.reconstruction: cross_entropy .*continuous values; .*mse, l1, cosine or auto$"
    with pytest.raises(ConfigError, match=message):
        resolve_reconstruction(LossSettings(reconstruction="cross_entropy"), None)


@pytest.mark.parametrize("weight", [{"commitment": -0.1}, {"entropy": -0.1}, {"entropy": float("nan")}])
def test_negative_or_nan_weights_are_refused(weight):
    with pytest.raises(ValidationError, match=next(iter(weight))):
        LossSettings(**weight)
