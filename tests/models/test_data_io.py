"""Values and classes on the way in and on the way out."""

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
def test_restore_brings_back_the_units(size):
    prediction, values = normal(4, 3, *size), ContinuousIO(MEAN, SCALE)
    restored = values.restore(prediction)
    for channel in range(3):
        torch.testing.assert_close(restored[:, channel], prediction[:, channel] * SCALE[channel] + MEAN[channel])
    torch.testing.assert_close(values(restored), prediction, rtol=1e-5, atol=1e-5)


def test_normalising_has_as_many_channels_as_the_batch_even_when_sizes_agree():
    x = normal(3, 3, 3, 3)
    torch.testing.assert_close(ContinuousIO(MEAN, SCALE)(x)[:, 1], (x[:, 1] + 2) * 4)


def test_the_target_of_values_is_normalised():
    x = normal(4, 3, 5)
    values = ContinuousIO(MEAN, SCALE)
    assert torch.equal(values.target(x), values(x))


def test_normalisation_travels_in_the_state_dict_and_is_not_trained():
    values = ContinuousIO(MEAN, SCALE)
    assert set(values.state_dict()) == {"mean", "scale"}
    assert list(values.parameters()) == []
    other = ContinuousIO((0.0,) * 3, (1.0,) * 3)
    other.load_state_dict(values.state_dict())
    x = normal(4, 3)
    assert torch.equal(other(x), values(x))
    assert (values.inputs, values.outputs) == (3, 3)


@pytest.mark.parametrize("size", SIZES)
def test_each_class_becomes_its_vector(size):
    classes = CategoricalIO(6, 3)
    x = torch.randint(0, 6, (4, *size), generator=torch.Generator().manual_seed(0))
    y = classes(x)
    assert y.shape == (4, 3, *size)
    vectors = y.movedim(1, -1).reshape(-1, 3)
    for index, vector in zip(x.flatten(), vectors, strict=True):
        assert torch.equal(vector, classes.embedding.weight[index])


def test_the_gradient_reaches_the_vectors_of_the_classes_seen():
    classes = CategoricalIO(6, 3)
    classes(torch.tensor([[1, 4, 4]])).sum().backward()
    assert classes.embedding.weight.grad.tolist() == [[0] * 3, [1] * 3, [0] * 3, [0] * 3, [2] * 3, [0] * 3]


def test_classes_take_a_width_and_give_a_logit_a_class():
    classes = CategoricalIO(6, 3)
    assert (classes.inputs, classes.outputs) == (3, 6)
    x = torch.tensor([[1, 4]])
    assert classes.target(x) is x


@pytest.mark.parametrize("size", SIZES)
def test_the_likeliest_class_is_restored(size):
    x = torch.randint(0, 6, (4, *size), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot(x, 6).movedim(-1, 1) + 0.4 * normal(4, 6, *size).clamp(-1, 1)
    assert torch.equal(CategoricalIO(6, 3).restore(logits), x)
