import pytest
import torch

from vqtool.models.encoders.padding import crop, pad_to_multiple, strided


def test_a_sequence_is_padded_by_its_last_value() -> None:
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]])
    assert pad_to_multiple(x, 4).tolist() == [[[1, 2, 3, 4, 5, 5, 5, 5]]]


def test_an_image_is_padded_below_and_on_the_right() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]])
    assert pad_to_multiple(x, 2)[0, 0].tolist() == [[1, 2, 3, 3], [4, 5, 6, 6], [7, 8, 9, 9], [7, 8, 9, 9]]


def test_each_axis_is_padded_by_what_it_misses() -> None:
    assert pad_to_multiple(torch.zeros(2, 3, 4, 5), 4).shape == (2, 3, 4, 8)


def test_sizes_that_fit_are_left_alone() -> None:
    x = torch.rand(2, 3, 4, 8)
    assert pad_to_multiple(x, 4) is x
    assert pad_to_multiple(torch.rand(2, 3), 4).shape == (2, 3)


@pytest.mark.parametrize("size", [(1,), (7,), (1, 1), (9, 8), (5, 11)])
@pytest.mark.parametrize("stride", [1, 2, 4, 32])
def test_cropping_undoes_padding(size: tuple[int, ...], stride: int) -> None:
    x = torch.rand(2, 3, *size)
    padded = pad_to_multiple(x, stride)
    assert tuple(n // stride for n in padded.shape[2:]) == strided(size, stride)
    assert all(n % stride == 0 for n in padded.shape[2:])
    assert torch.equal(crop(padded, size), x)


def test_a_grid_counts_the_padded_cells() -> None:
    assert strided((1, 4, 5, 8, 9), 4) == (1, 1, 2, 2, 3)
    assert strided((), 4) == ()
