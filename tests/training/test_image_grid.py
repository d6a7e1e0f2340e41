import pytest
import torch

from vqtool.data import SampleSpec
from vqtool.training.image_grid import is_picture, side_by_side

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
def test_images_and_grids_can_be_looked_at(spec: SampleSpec, expected: bool) -> None:
    assert is_picture(spec) == expected


@pytest.mark.parametrize("count", [1, 4])
def test_inputs_stand_over_outputs_with_white_lines_between(count: int) -> None:
    inputs, outputs = torch.rand(2, count, 3, 2, 3)
    inputs[0, 0, 0, 0], inputs[0, 0, 0, 1] = 0, 1
    picture = side_by_side(COLOUR, inputs, outputs)
    assert picture.shape == (3, 5, 4 * count - 1)
    for i in range(count):
        left = 4 * i
        torch.testing.assert_close(picture[:, :2, left : left + 3], inputs[i])
        torch.testing.assert_close(picture[:, 3:, left : left + 3], outputs[i])
    assert (picture[:, 2] == 1).all()
    assert (picture[:, :, 3::4] == 1).all()


def test_the_inputs_give_the_range_of_brightness() -> None:
    inputs = torch.tensor([[[[-10.0, 0.0, 10.0], [5.0, -5.0, 10.0]]]])
    outputs = torch.tensor([[[[-20.0, 0.0, 20.0], [5.0, -5.0, 10.0]]]])
    picture = side_by_side(GREY, inputs, outputs)
    assert picture[0, :2].tolist() == [[0, 0.5, 1], [0.75, 0.25, 1]]
    assert picture[0, 3:].tolist() == [[0, 0.5, 1], [0.75, 0.25, 1]]
    assert torch.equal(picture[0], picture[1])
    assert torch.equal(picture[0], picture[2])


def test_images_without_contrast_are_no_fault() -> None:
    picture = side_by_side(GREY, torch.full((1, 1, 2, 3), 7.0), torch.full((1, 1, 2, 3), 7.0))
    assert picture.isfinite().all()


@pytest.mark.parametrize("channels", [2, 5])
def test_channels_that_are_no_colours_are_shown_by_the_first(channels: int) -> None:
    images = torch.rand(1, channels, 2, 3)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 1
    picture = side_by_side(SampleSpec("CHW", channels, (2, 3), None, "float32"), images, images)
    assert all(torch.equal(picture[c, :2, :3], images[0, 0]) for c in range(3))


def test_each_class_has_a_colour_of_its_own() -> None:
    grids = torch.tensor([[[0, 1, 2], [2, 1, 0]]])
    picture = side_by_side(TILES, grids, grids.flip(2))
    colours = [picture[:, 0, i] for i in range(3)]
    assert not any(torch.equal(colours[i], colours[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(picture[:, 1, 0], colours[2])
    assert torch.equal(picture[:, 3, 0], colours[2])
    assert picture.min() >= 0
    assert picture.max() <= 1
