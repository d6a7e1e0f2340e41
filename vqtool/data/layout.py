"""Layouts and sample specs: which axis of a row is which, and how rows become samples and samples become rows.

A row is one entry along the first axis of the user's array, of shape `row`; a sample is what a network sees: (C, *size)
values, or (*size) classes.
Shapes: n rows, C channels, T steps, H and W pixels; size is (), (T,) or (H, W).
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vqtool.errors import DataError
from vqtool.runtime.terminal import join_or

LayoutName = Literal["C", "CT", "TC", "CHW", "HWC", "T", "HW"]

DtypeName = Literal[
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
]

# `guess_layout`: in a sequence, the axis of at most this length is the channel axis if the other axis is longer.
_MAX_SEQUENCE_CHANNELS = 16
# `guess_layout`: most channels of an image: grey, grey + alpha, RGB or RGBA.
_MAX_COLOUR_CHANNELS = 4


class Layout(NamedTuple):
    """The axes of a row."""

    channel: int | None
    """Index of the channel axis within a row; None if there is none."""
    rank: int
    """Number of axes of a row."""


LAYOUTS: dict[LayoutName, Layout] = {
    "C": Layout(0, 1),
    "CT": Layout(0, 2),
    "TC": Layout(1, 2),
    "CHW": Layout(0, 3),
    "HWC": Layout(2, 3),
    "T": Layout(None, 1),
    "HW": Layout(None, 2),
}


@dataclass(frozen=True)
class SampleSpec:
    """Resolved shape and type of the samples of a data set: all that a model needs to know about the data.

    Attributes:
        layout: the axes of a row.
        channels: C; 1 in a layout without a channel axis.
        size: shape of a sample without the channels: (), (T,) or (H, W).
        classes: number of classes, which are 0 to classes - 1; None for values.
        dtype: torch name of the dtype of the user's array, such as `float32`.
    """

    layout: LayoutName
    channels: int
    size: tuple[int, ...]
    classes: int | None
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row of the user's array, without the axis of the rows."""
        return row_shape(self.layout, self.channels, self.size)

    def to_samples(self, rows: Tensor) -> Tensor:
        """Convert rows (n, *row) to samples: (n, C, *size) float32 values, or (n, *size) int64 classes."""
        return rows.to(torch.int64) if self.classes else rows_to_values(rows, self.layout).to(torch.float32)

    def to_rows(self, samples: Tensor) -> Tensor:
        """Convert samples, (n, C, *size) values or (n, *size) classes, to rows (n, *row) of the user's dtype.

        Values are clamped to the range of the dtype, float64 to that of float32. For integers they are also rounded,
        halves to even. Booleans are True from 0.5 up. Classes are cast without a check.
        """
        dtype = self.torch_dtype
        rows = samples if self.classes else values_to_rows(samples, self.layout)
        if dtype == torch.bool:
            return rows >= 0.5
        if self.classes:
            return rows.to(dtype)
        if dtype.is_floating_point:
            # float16 has a smaller range than float32: without the clamp, a finite value could become infinite.
            largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
            return rows.clamp(-largest, largest).to(dtype)
        limits = torch.iinfo(dtype)
        # The largest 64-bit integers are not representable in float64; rounded up, they would overflow the dtype.
        largest = float(limits.max) if int(float(limits.max)) <= limits.max else math.nextafter(float(limits.max), 0)
        return rows.double().round().clamp(limits.min, largest).to(dtype)

    def check_row_shape(self, shape: tuple[int, ...], any_size: bool, subject: str) -> None:
        """Check that rows of another array have the shape of these rows.

        Args:
            shape: shape of one row of the other array.
            any_size: accept rows that differ in size, but not in the number of axes or channels.
            subject: name of the other array, at the start of the message.

        Raises:
            DataError: the shape differs, or has an axis of length 0.
        """
        expected = self.row_shape
        channel = LAYOUTS[self.layout].channel
        fits = len(shape) == len(expected) and (channel is None or shape[channel] == expected[channel])
        if not fits or 0 in shape or (shape != expected and not any_size):
            raise DataError(
                f"{subject}: rows have shape {shape}, but the model was trained on rows of shape {expected} "
                f"(layout {self.layout})"
            )


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its module: `float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def holds_classes(layout: LayoutName, dtype: torch.dtype) -> bool:
    """Return whether rows are grids of classes: integers or booleans in a layout without a channel axis."""
    return LAYOUTS[layout].channel is None and not dtype.is_floating_point


def layouts_with_channels(layout: LayoutName) -> list[LayoutName]:
    """Return the layouts with a channel axis whose rows have as many axes as those of `layout`."""
    rank = LAYOUTS[layout].rank
    return [name for name, other in LAYOUTS.items() if other.channel is not None and other.rank == rank]


def rows_to_values(rows: Tensor, layout: LayoutName) -> Tensor:
    """Move the channel axis first: (n, *row) to (n, C, *size). A layout without channels gets C = 1."""
    channel = LAYOUTS[layout].channel
    return rows.unsqueeze(1) if channel is None else rows.movedim(1 + channel, 1)


def values_to_rows(values: Tensor, layout: LayoutName) -> Tensor:
    """Invert `rows_to_values`: (n, C, *size) to (n, *row). A layout without channels needs C = 1."""
    channel = LAYOUTS[layout].channel
    return values.squeeze(1) if channel is None else values.movedim(1, 1 + channel)


def row_shape(layout: LayoutName, channels: int, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a row for C = `channels` and `size`; a layout without a channel axis ignores `channels`."""
    channel = LAYOUTS[layout].channel
    return size if channel is None else (*size[:channel], channels, *size[channel:])


def sample_shape(layout: LayoutName, row: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Return C and size of a sample from the shape `row` of a row; C is 1 in a layout without a channel axis."""
    channel = LAYOUTS[layout].channel
    return (1, row) if channel is None else (row[channel], row[:channel] + row[channel + 1 :])


def guess_layout(row: tuple[int, ...], dtype: torch.dtype) -> LayoutName:
    """Infer the layout of rows from the shape `row` of a row and the dtype.

    One axis: C for floats, T for integers and booleans. Two axes: HW for integers and booleans; for floats CT or TC, if
    one axis has at most 16 entries and the other more. Three axes: CHW or HWC; the first or last axis is the channel
    axis if it has at most 4 entries, or if the other two axes are equally long.

    Raises:
        DataError: no layout fits, or more than one is plausible.
    """
    guesses = _plausible_layouts(row, dtype)
    if len(guesses) == 1:
        return guesses[0]
    if not guesses:
        raise DataError(
            f"rows of shape {row} have no layout; expected an array (N, C), (N, C, T) or (N, C, H, W), or integers "
            "(N, T) or (N, H, W)"
        )
    raise DataError(
        f"rows of shape {row} can have layout {join_or(guesses)}; set data.layout to the correct one "
        "(C channels, T steps, H and W pixels)"
    )


def _plausible_layouts(row: tuple[int, ...], dtype: torch.dtype) -> list[LayoutName]:
    match row:
        case (_,):
            return ["C"] if dtype.is_floating_point else ["T"]
        case (_, _) if not dtype.is_floating_point:
            return ["HW"]
        case (first, last):
            if first <= _MAX_SEQUENCE_CHANNELS < last:
                return ["CT"]
            return ["TC"] if last <= _MAX_SEQUENCE_CHANNELS < first else ["CT", "TC", "HW"]
        case (first, middle, last):
            channels_first = first <= _MAX_COLOUR_CHANNELS or middle == last
            channels_last = last <= _MAX_COLOUR_CHANNELS or first == middle
            if channels_first != channels_last:
                return ["CHW"] if channels_first else ["HWC"]
            return ["CHW", "HWC"]
    return []
