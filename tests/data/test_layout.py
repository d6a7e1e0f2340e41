"""Layouts are guessed where one reading is likely, and turn rows into samples and back."""

import numpy as np
import pytest
import torch

from tests.data import ROWS
from vqtool.data.layout import (
    LAYOUTS,
    LayoutName,
    guess_layout,
    holds_classes,
    row_shape,
    rows_to_values,
    sample_shape,
    values_to_rows,
    with_channels,
)
from vqtool.errors import DataError


@pytest.mark.parametrize(
    ("row", "dtype", "layout"),
    [
        ((64,), torch.float32, "C"),
        ((1,), torch.float16, "C"),
        ((64,), torch.bfloat16, "C"),
        ((64,), torch.int64, "T"),
        ((64,), torch.bool, "T"),
        ((20, 30), torch.uint8, "HW"),
        ((3, 100), torch.int32, "HW"),
        ((28, 28), torch.bool, "HW"),
        ((1, 128), torch.float32, "CT"),
        ((16, 17), torch.float64, "CT"),
        ((128, 1), torch.float32, "TC"),
        ((17, 16), torch.float32, "TC"),
        ((1, 28, 28), torch.float32, "CHW"),
        ((3, 32, 48), torch.float32, "CHW"),
        ((3, 32, 48), torch.uint8, "CHW"),
        ((4, 5, 6), torch.float32, "CHW"),
        ((64, 8, 8), torch.float32, "CHW"),
        ((28, 28, 1), torch.float32, "HWC"),
        ((32, 48, 3), torch.uint8, "HWC"),
        ((8, 8, 64), torch.float32, "HWC"),
    ],
)
def test_the_likely_layout_is_taken(row: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    assert guess_layout(row, dtype) == layout


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ((28, 28), "CT, TC or HW"),
        ((3, 8), "CT, TC or HW"),
        ((16, 16), "CT, TC or HW"),
        ((17, 17), "CT, TC or HW"),
        ((3, 3, 3), "CHW or HWC"),
        ((3, 32, 3), "CHW or HWC"),
        ((8, 8, 8), "CHW or HWC"),
        ((16, 20, 24), "CHW or HWC"),
    ],
)
def test_two_likely_readings_are_refused_by_name(row: tuple[int, ...], named: str) -> None:
    with pytest.raises(DataError) as caught:
        guess_layout(row, torch.float32)
    assert f"rows of shape {row} can have layout {named}; set data.layout" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("row", [(), (2, 3, 4, 5)])
def test_a_rank_without_layout_is_refused(row: tuple[int, ...], dtype: torch.dtype) -> None:
    with pytest.raises(DataError, match=r"expected an array \(N, C\), \(N, C, T\) or \(N, C, H, W\)"):
        guess_layout(row, dtype)


@pytest.mark.parametrize(("layout", "row", "channel"), ROWS)
def test_values_have_their_channels_first(layout: LayoutName, row: tuple[int, ...], channel: int | None) -> None:
    rows = np.random.default_rng(0).random((4, *row))
    values = rows_to_values(torch.from_numpy(rows), layout)
    expected = rows[:, None] if channel is None else np.moveaxis(rows, 1 + channel, 1)
    assert values.dtype == torch.float64
    np.testing.assert_array_equal(values.numpy(), expected)


@pytest.mark.parametrize(("layout", "row", "channel"), ROWS)
def test_rows_come_back_from_values(layout: LayoutName, row: tuple[int, ...], channel: int | None) -> None:
    rows = torch.rand(4, *row)
    back = values_to_rows(rows_to_values(rows, layout), layout)
    assert back.shape == rows.shape
    assert torch.equal(back, rows)


@pytest.mark.parametrize(("layout", "row", "channel"), ROWS)
def test_shapes_of_rows_and_samples_are_inverse(layout: LayoutName, row: tuple[int, ...], channel: int | None) -> None:
    channels, size = sample_shape(layout, row)
    assert channels == (1 if channel is None else 3)
    assert size == tuple(n for axis, n in enumerate(row) if axis != channel)
    assert row_shape(layout, channels, size) == row
    assert LAYOUTS[layout].rank == len(row)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_classes_are_integers_without_channels(layout: LayoutName, dtype: torch.dtype) -> None:
    assert holds_classes(layout, dtype) == (layout in ("T", "HW") and not dtype.is_floating_point)


def test_rows_of_as_many_axes_can_have_channels() -> None:
    found = {layout: with_channels(layout) for layout in ("T", "HW", "HWC")}
    assert found == {"T": ["C"], "HW": ["CT", "TC"], "HWC": ["CHW", "HWC"]}
