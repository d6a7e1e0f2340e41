"""Normalisation of values and embedding of classes, and their inverses."""

import pytest
import torch

from vqtool.models.data_io import CategoricalIO, ContinuousIO

MEAN, SCALE = (1.0, -2.0, 0.5), (2.0, 0.25, 10.0)
SIZES = [(), (5,), (2, 4)]


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES)
def test_values_are_normalised_channel_by_channel(size):
    x = normal(4, 3, *size)
    y = ContinuousIO(MEAN, SCALE)(x)
    assert y.shape == x.shape
    for channel in range(3):
        torch.testing.assert_close(y[:, channel], (x[:, channel] - MEAN[channel]) / SCALE[channel])


@pytest.mark.parametrize("size", SIZES)
def test_postprocess_inverts_normalisation(size):
    prediction, values = normal(4, 3, *size), ContinuousIO(MEAN, SCALE)
    denormalised = values.postprocess(prediction)
    for channel in range(3):
        torch.testing.assert_close(denormalised[:, channel], prediction[:, channel] * SCALE[channel] + MEAN[channel])
    torch.testing.assert_close(values(denormalised), prediction, rtol=1e-5, atol=1e-5)


def test_normalisation_uses_the_channel_axis_when_all_axes_have_equal_length():
    x = normal(3, 3, 3, 3)
    torch.testing.assert_close(ContinuousIO(MEAN, SCALE)(x)[:, 1], (x[:, 1] + 2) * 4)


def test_the_target_of_values_is_normalised():
    x = normal(4, 3, 5)
    values = ContinuousIO(MEAN, SCALE)
    assert torch.equal(values.target(x), values(x))


def test_mean_and_scale_are_buffers_in_the_state_dict():
    values = ContinuousIO(MEAN, SCALE)
    assert set(values.state_dict()) == {"mean", "scale"}
    assert list(values.parameters()) == []
    other = ContinuousIO((0.0,) * 3, (1.0,) * 3)
    other.load_state_dict(values.state_dict())
    x = normal(4, 3)
    assert torch.equal(other(x), values(x))
    assert (values.in_channels, values.out_channels) == (3, 3)


@pytest.mark.parametrize("size", SIZES)
def test_each_class_becomes_its_embedding(size):
    classes = CategoricalIO(6, 3)
    x = torch.randint(0, 6, (4, *size), generator=torch.Generator().manual_seed(0))
    y = classes(x)
    assert y.shape == (4, 3, *size)
    vectors = y.movedim(1, -1).reshape(-1, 3)
    for index, vector in zip(x.flatten(), vectors, strict=True):
        assert torch.equal(vector, classes.embedding.weight[index])


def test_gradient_reaches_the_embeddings_of_the_classes_in_the_batch():
    classes = CategoricalIO(6, 3)
    classes(torch.tensor([[1, 4, 4]])).sum().backward()
    assert classes.embedding.weight.grad.tolist() == [[0] * 3, [1] * 3, [0] * 3, [0] * 3, [2] * 3, [0] * 3]


def test_channels_and_target_of_classes():
    classes = CategoricalIO(6, 3)
    assert (classes.in_channels, classes.out_channels) == (3, 6)
    x = torch.tensor([[1, 4]])
    assert classes.target(x) is x


@pytest.mark.parametrize("size", SIZES)
def test_postprocess_returns_the_most_likely_class(size):
    x = torch.randint(0, 6, (4, *size), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot(x, 6).movedim(-1, 1) + 0.4 * normal(4, 6, *size).clamp(-1, 1)
    assert torch.equal(CategoricalIO(6, 3).postprocess(logits), x)
