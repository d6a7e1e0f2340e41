"""Layouts are inferred where unambiguous; layouts and sample specs convert rows to samples and back."""

import numpy as np
import pytest
import torch

from tests.data import ROWS
from vqtool.data.layout import (
    LAYOUTS,
    LayoutName,
    SampleSpec,
    dtype_name,
    guess_layout,
    holds_classes,
    layouts_with_channels,
    row_shape,
    rows_to_values,
    sample_shape,
    values_to_rows,
)
from vqtool.errors import DataError

# Size of a sample by the rank of (C, *size).
SIZES: dict[int, tuple[int, ...]] = {1: (), 2: (5,), 3: (5, 7)}
INTEGERS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]


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
def test_unambiguous_layout_is_inferred(row: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    assert guess_layout(row, dtype) == layout


@pytest.mark.parametrize(
    ("row", "candidates"),
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
def test_ambiguous_layout_is_refused_with_the_candidates(row: tuple[int, ...], candidates: str) -> None:
    with pytest.raises(DataError) as caught:
        guess_layout(row, torch.float32)
    assert all(part in str(caught.value) for part in (str(row), f"layout {candidates}", "data.layout"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("row", [(), (2, 3, 4, 5)])
def test_rank_without_layout_is_refused(row: tuple[int, ...], dtype: torch.dtype) -> None:
    with pytest.raises(DataError, match=r"\(N, C\), \(N, C, T\) or \(N, C, H, W\)"):
        guess_layout(row, dtype)


@pytest.mark.parametrize(("layout", "row", "channel"), ROWS)
def test_values_have_channels_first(layout: LayoutName, row: tuple[int, ...], channel: int | None) -> None:
    rows = np.random.default_rng(0).random((4, *row))
    values = rows_to_values(torch.from_numpy(rows), layout)
    expected = rows[:, None] if channel is None else np.moveaxis(rows, 1 + channel, 1)
    assert values.dtype == torch.float64
    np.testing.assert_array_equal(values.numpy(), expected)


@pytest.mark.parametrize(("layout", "row", "channel"), ROWS)
def test_values_to_rows_inverts_rows_to_values(layout: LayoutName, row: tuple[int, ...], channel: int | None) -> None:
    rows = torch.rand(4, *row)
    back = values_to_rows(rows_to_values(rows, layout), layout)
    assert back.shape == rows.shape
    assert torch.equal(back, rows)


@pytest.mark.parametrize(("layout", "row", "channel"), ROWS)
def test_row_shape_inverts_sample_shape(layout: LayoutName, row: tuple[int, ...], channel: int | None) -> None:
    channels, size = sample_shape(layout, row)
    assert channels == (1 if channel is None else 3)
    assert size == tuple(n for axis, n in enumerate(row) if axis != channel)
    assert row_shape(layout, channels, size) == row
    assert LAYOUTS[layout].rank == len(row)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_integers_without_channels_are_classes(layout: LayoutName, dtype: torch.dtype) -> None:
    assert holds_classes(layout, dtype) == (layout in ("T", "HW") and not dtype.is_floating_point)


def test_layouts_with_channels_have_the_same_rank() -> None:
    actual = {layout: layouts_with_channels(layout) for layout in ("T", "HW", "HWC")}
    assert actual == {"T": ["C"], "HW": ["CT", "TC"], "HWC": ["CHW", "HWC"]}


def _value_spec(layout: LayoutName, dtype: str) -> SampleSpec:
    no_channels = LAYOUTS[layout].channel is None
    size = SIZES[LAYOUTS[layout].rank + no_channels]
    return SampleSpec(layout, 1 if no_channels else 3, size, None, dtype)


def _vector_spec(dtype: str) -> SampleSpec:
    return SampleSpec("C", 3, (), None, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_float_rows_survive_a_round_trip_through_samples(layout: LayoutName, dtype: str) -> None:
    spec = _value_spec(layout, dtype)
    rows = torch.randn(4, *spec.row_shape).to(spec.torch_dtype)
    samples = spec.to_samples(rows)
    assert samples.shape == (4, spec.channels, *spec.size)
    assert samples.dtype == torch.float32
    back = spec.to_rows(samples)
    assert back.dtype == rows.dtype
    assert torch.equal(back, rows)


@pytest.mark.parametrize("dtype", [*INTEGERS, "bool"])
def test_class_rows_survive_a_round_trip_through_samples(dtype: str) -> None:
    spec = SampleSpec("HW", 1, (2, 3), 2, dtype)
    rows = torch.tensor([[[0, 1, 1], [1, 0, 0]]]).to(spec.torch_dtype)
    samples = spec.to_samples(rows)
    assert samples.dtype == torch.int64
    assert samples.tolist() == [[[0, 1, 1], [1, 0, 0]]]
    back = spec.to_rows(samples)
    assert back.dtype == rows.dtype
    assert torch.equal(back, rows)


def test_uint8_rows_are_rounded_and_clamped() -> None:
    rows = _vector_spec("uint8").to_rows(torch.tensor([[-3.0, 0.4, 0.6], [254.6, 255.4, 300.0]]))
    assert rows.dtype == torch.uint8
    assert rows.tolist() == [[0, 0, 1], [255, 255, 255]]


def test_negative_values_are_rounded_to_the_nearest_integer() -> None:
    assert _vector_spec("int8").to_rows(torch.tensor([[-1.6, -1.4, -200.0]])).tolist() == [[-2, -1, -128]]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_values_are_clamped_to_the_range_of_the_integer_dtype(dtype: str) -> None:
    limits = torch.iinfo(getattr(torch, dtype))
    rows = _vector_spec(dtype).to_rows(torch.tensor([[-1e30, 1.0, 1e30]]))
    assert rows.tolist() == [[pytest.approx(limits.min), 1, pytest.approx(limits.max)]]


def test_booleans_are_true_from_one_half() -> None:
    rows = _vector_spec("bool").to_rows(torch.tensor([[0.49, 0.5, 7.0]]))
    assert rows.dtype == torch.bool
    assert rows.tolist() == [[False, True, True]]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_with_channels_are_values(dtype: str) -> None:
    rows = torch.tensor([[0, 1, 100]]).to(getattr(torch, dtype))
    samples = _vector_spec(dtype).to_samples(rows)
    assert samples.dtype == torch.float32
    assert samples.tolist() == [[0.0, 1.0, 100.0]]


def test_another_size_is_refused_unless_any_size() -> None:
    spec = SampleSpec("CHW", 3, (8, 8), None, "float32")
    spec.check_row_shape((3, 8, 8), any_size=False, subject="x.npy")
    spec.check_row_shape((3, 9, 4), any_size=True, subject="x.npy")
    with pytest.raises(DataError, match=r"x\.npy: .*\(3, 9, 4\).*\(3, 8, 8\).*CHW"):
        spec.check_row_shape((3, 9, 4), any_size=False, subject="x.npy")


@pytest.mark.parametrize("shape", [(4, 8, 8), (8, 8, 3), (8, 8), (3, 8, 8, 1), ()])
def test_other_channels_or_axes_are_refused_even_with_any_size(shape: tuple[int, ...]) -> None:
    spec = SampleSpec("CHW", 3, (8, 8), None, "float32")
    with pytest.raises(DataError) as caught:
        spec.check_row_shape(shape, any_size=True, subject="x.npy")
    assert f"shape {shape}" in str(caught.value)
    assert "(3, 8, 8)" in str(caught.value)


def test_channels_are_compared_on_the_channel_axis_of_the_layout() -> None:
    spec = SampleSpec("HWC", 3, (8, 8), None, "float32")
    spec.check_row_shape((5, 6, 3), any_size=True, subject="x.npy")
    with pytest.raises(DataError):
        spec.check_row_shape((3, 8, 8), any_size=True, subject="x.npy")


def test_dtype_name_is_the_torch_name() -> None:
    assert dtype_name(torch.bfloat16) == "bfloat16"
    assert _vector_spec("bfloat16").torch_dtype == torch.bfloat16


def test_float16_rows_are_clamped_to_its_largest_finite_value() -> None:
    rows = SampleSpec("C", 2, (), None, "float16").to_rows(torch.tensor([[1e6, -1e6]]))
    assert rows.tolist() == [[65504.0, -65504.0]]
