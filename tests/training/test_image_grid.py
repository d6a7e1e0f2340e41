import pytest
import torch

from vqtool.data import SampleSpec
from vqtool.training.image_grid import is_image, reconstruction_grid

GREY = SampleSpec("CHW", 1, (2, 3), None, "float32")
COLOUR = SampleSpec("CHW", 3, (2, 3), None, "float32")
TILES = SampleSpec("HW", 1, (2, 3), 3, "uint8")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (GREY, True),
        (TILES, True),
        (SampleSpec("HW", 1, (4, 4), None, "float32"), True),
        (SampleSpec("CT", 3, (8,), None, "float32"), False),
        (SampleSpec("T", 1, (8,), 3, "int64"), False),
        (SampleSpec("C", 3, (), None, "float32"), False),
    ],
)
def test_samples_with_two_spatial_axes_are_images(spec: SampleSpec, expected: bool) -> None:
    assert is_image(spec) == expected


@pytest.mark.parametrize("count", [1, 4])
def test_inputs_are_above_outputs_separated_by_white_lines(count: int) -> None:
    inputs, outputs = torch.rand(2, count, 3, 2, 3)
    inputs[0, 0, 0, 0], inputs[0, 0, 0, 1] = 0, 1
    image = reconstruction_grid(COLOUR, inputs, outputs)
    assert image.shape == (3, 5, 4 * count - 1)
    for i in range(count):
        left = 4 * i
        torch.testing.assert_close(image[:, :2, left : left + 3], inputs[i])
        torch.testing.assert_close(image[:, 3:, left : left + 3], outputs[i])
    assert (image[:, 2] == 1).all()
    assert (image[:, :, 3::4] == 1).all()


def test_values_are_scaled_to_the_range_of_the_inputs() -> None:
    inputs = torch.tensor([[[[-10.0, 0.0, 10.0], [5.0, -5.0, 10.0]]]])
    outputs = torch.tensor([[[[-20.0, 0.0, 20.0], [5.0, -5.0, 10.0]]]])
    image = reconstruction_grid(GREY, inputs, outputs)
    assert image[0, :2].tolist() == [[0, 0.5, 1], [0.75, 0.25, 1]]
    assert image[0, 3:].tolist() == [[0, 0.5, 1], [0.75, 0.25, 1]]
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


def test_constant_images_give_finite_values() -> None:
    image = reconstruction_grid(GREY, torch.full((1, 1, 2, 3), 7.0), torch.full((1, 1, 2, 3), 7.0))
    assert image.isfinite().all()


@pytest.mark.parametrize("channels", [2, 5])
def test_first_channel_is_shown_unless_there_are_three(channels: int) -> None:
    images = torch.rand(1, channels, 2, 3)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 1
    image = reconstruction_grid(SampleSpec("CHW", channels, (2, 3), None, "float32"), images, images)
    assert all(torch.equal(image[c, :2, :3], images[0, 0]) for c in range(3))


def test_each_class_has_its_own_colour() -> None:
    grids = torch.tensor([[[0, 1, 2], [2, 1, 0]]])
    image = reconstruction_grid(TILES, grids, grids.flip(2))
    colours = [image[:, 0, i] for i in range(3)]
    assert not any(torch.equal(colours[i], colours[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(image[:, 1, 0], colours[2])
    assert torch.equal(image[:, 3, 0], colours[2])
    assert image.min() >= 0
    assert image.max() <= 1
