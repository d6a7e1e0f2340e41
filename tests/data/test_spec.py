"""The spec turns rows into samples, and what a decoder gives back into rows of the user's type."""

import pytest
import torch

from vqtool.data.layout import LAYOUTS, LayoutName
from vqtool.data.spec import SampleSpec, dtype_name
from vqtool.errors import DataError

SIZES: dict[int, tuple[int, ...]] = {1: (), 2: (5,), 3: (5, 7)}
INTEGERS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]


def _values(layout: LayoutName, dtype: str) -> SampleSpec:
    without = LAYOUTS[layout].channel is None
    size = SIZES[LAYOUTS[layout].rank + without]
    return SampleSpec(layout, 1 if without else 3, size, None, dtype)


def _vectors(dtype: str) -> SampleSpec:
    return SampleSpec("C", 3, (), None, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_values_come_back_as_the_rows_they_were(layout: LayoutName, dtype: str) -> None:
    spec = _values(layout, dtype)
    rows = torch.randn(4, *spec.row_shape).to(spec.torch_dtype)
    samples = spec.samples(rows)
    assert samples.shape == (4, spec.channels, *spec.size)
    assert samples.dtype == torch.float32
    back = spec.rows(samples)
    assert back.dtype == rows.dtype
    assert torch.equal(back, rows)


@pytest.mark.parametrize("dtype", [*INTEGERS, "bool"])
def test_classes_come_back_as_the_rows_they_were(dtype: str) -> None:
    spec = SampleSpec("HW", 1, (2, 3), 2, dtype)
    rows = torch.tensor([[[0, 1, 1], [1, 0, 0]]]).to(spec.torch_dtype)
    samples = spec.samples(rows)
    assert samples.dtype == torch.int64
    assert samples.tolist() == [[[0, 1, 1], [1, 0, 0]]]
    back = spec.rows(samples)
    assert back.dtype == rows.dtype
    assert torch.equal(back, rows)


def test_bytes_are_rounded_and_clamped() -> None:
    rows = _vectors("uint8").rows(torch.tensor([[-3.0, 0.4, 0.6], [254.6, 255.4, 300.0]]))
    assert rows.dtype == torch.uint8
    assert rows.tolist() == [[0, 0, 1], [255, 255, 255]]


def test_negative_integers_are_rounded_to_the_nearest() -> None:
    assert _vectors("int8").rows(torch.tensor([[-1.6, -1.4, -200.0]])).tolist() == [[-2, -1, -128]]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_values_beyond_the_type_become_its_limits(dtype: str) -> None:
    limits = torch.iinfo(getattr(torch, dtype))
    rows = _vectors(dtype).rows(torch.tensor([[-1e30, 1.0, 1e30]]))
    assert rows.tolist() == [[pytest.approx(limits.min), 1, pytest.approx(limits.max)]]


def test_booleans_are_cut_at_one_half() -> None:
    rows = _vectors("bool").rows(torch.tensor([[0.49, 0.5, 7.0]]))
    assert rows.dtype == torch.bool
    assert rows.tolist() == [[False, True, True]]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_with_channels_are_values(dtype: str) -> None:
    rows = torch.tensor([[0, 1, 100]]).to(getattr(torch, dtype))
    samples = _vectors(dtype).samples(rows)
    assert samples.dtype == torch.float32
    assert samples.tolist() == [[0.0, 1.0, 100.0]]


def test_another_size_is_refused_or_let_through() -> None:
    spec = SampleSpec("CHW", 3, (8, 8), None, "float32")
    spec.check_row((3, 8, 8), any_size=False, what="x.npy")
    spec.check_row((3, 9, 4), any_size=True, what="x.npy")
    with pytest.raises(DataError, match=r"x\.npy: rows have shape \(3, 9, 4\), but .* \(3, 8, 8\) \(layout CHW\)"):
        spec.check_row((3, 9, 4), any_size=False, what="x.npy")


@pytest.mark.parametrize("shape", [(4, 8, 8), (8, 8, 3), (8, 8), (3, 8, 8, 1), ()])
def test_other_channels_or_axes_are_always_refused(shape: tuple[int, ...]) -> None:
    spec = SampleSpec("CHW", 3, (8, 8), None, "float32")
    with pytest.raises(DataError) as caught:
        spec.check_row(shape, any_size=True, what="x.npy")
    assert f"rows have shape {shape}" in str(caught.value)
    assert "(3, 8, 8)" in str(caught.value)


def test_channels_are_looked_for_where_the_layout_has_them() -> None:
    spec = SampleSpec("HWC", 3, (8, 8), None, "float32")
    spec.check_row((5, 6, 3), any_size=True, what="x.npy")
    with pytest.raises(DataError):
        spec.check_row((3, 8, 8), any_size=True, what="x.npy")


def test_a_type_is_named_as_torch_names_it() -> None:
    assert dtype_name(torch.bfloat16) == "bfloat16"
    assert _vectors("bfloat16").torch_dtype == torch.bfloat16


def test_float16_ends_at_its_largest_value_not_at_infinity() -> None:
    rows = SampleSpec("C", 2, (), None, "float16").rows(torch.tensor([[1e6, -1e6]]))
    assert rows.tolist() == [[65504.0, -65504.0]]
