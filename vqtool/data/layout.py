"""Layouts: which axis of a row is which, and how rows of an array become samples and go back.

Shapes: n rows, C channels, T steps, H rows of pixels, W columns. A row is what the user's array holds at one index; a
sample is what a network sees: (C, *size) values, or (*size) classes, with size (), (T,) or (H, W).
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vqtool.errors import DataError
from vqtool.runtime.terminal import listed

LayoutName = Literal["C", "CT", "TC", "CHW", "HWC", "T", "HW"]


class Layout(NamedTuple):
    """Where a row has its axes."""

    channel: int | None
    """The axis of the channels within a row; None where there is none."""
    rank: int
    """The number of axes of a row."""


LAYOUTS: dict[LayoutName, Layout] = {
    "C": Layout(0, 1),
    "CT": Layout(0, 2),
    "TC": Layout(1, 2),
    "CHW": Layout(0, 3),
    "HWC": Layout(2, 3),
    "T": Layout(None, 1),
    "HW": Layout(None, 2),
}


def holds_classes(layout: LayoutName, dtype: torch.dtype) -> bool:
    """Whether rows are grids of classes: integers in a layout without channels."""
    return LAYOUTS[layout].channel is None and not dtype.is_floating_point


def with_channels(layout: LayoutName) -> list[LayoutName]:
    """The layouts with channels of rows that have as many axes."""
    rank = LAYOUTS[layout].rank
    return [name for name, other in LAYOUTS.items() if other.channel is not None and other.rank == rank]


def rows_to_values(rows: Tensor, layout: LayoutName) -> Tensor:
    """(n, *row) to (n, C, *size) of the same type; a float row without channels gets one."""
    channel = LAYOUTS[layout].channel
    return rows.unsqueeze(1) if channel is None else rows.movedim(1 + channel, 1)


def values_to_rows(values: Tensor, layout: LayoutName) -> Tensor:
    """The inverse of `rows_to_values`."""
    channel = LAYOUTS[layout].channel
    return values.squeeze(1) if channel is None else values.movedim(1, 1 + channel)


def row_shape(layout: LayoutName, channels: int, size: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a row that holds a sample of `channels` and `size`."""
    channel = LAYOUTS[layout].channel
    return size if channel is None else (*size[:channel], channels, *size[channel:])


def sample_shape(layout: LayoutName, row: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """The channels and the size of a row of this shape; the inverse of `row_shape`."""
    channel = LAYOUTS[layout].channel
    return (1, row) if channel is None else (row[channel], row[:channel] + row[channel + 1 :])


def guess_layout(row: tuple[int, ...], dtype: torch.dtype) -> LayoutName:
    """Read the layout from the shape and the type of a row.

    Raises:
        DataError: no layout fits, or two are likely.
    """
    guesses = _guesses(row, dtype)
    if len(guesses) == 1:
        return guesses[0]
    if not guesses:
        raise DataError(
            f"rows of shape {row} have no layout; expected an array (N, C), (N, C, T) or (N, C, H, W), or integers "
            "(N, T) or (N, H, W)"
        )
    raise DataError(
        f"rows of shape {row} can have layout {listed(guesses)}; set data.layout to the correct one "
        "(C channels, T steps, H and W pixels)"
    )


def _guesses(row: tuple[int, ...], dtype: torch.dtype) -> list[LayoutName]:
    match row:
        case (_,):
            return ["C"] if dtype.is_floating_point else ["T"]
        case (_, _) if not dtype.is_floating_point:
            return ["HW"]
        case (first, last):
            if first <= _FEW_CHANNELS < last:
                return ["CT"]
            return ["TC"] if last <= _FEW_CHANNELS < first else ["CT", "TC", "HW"]
        case (first, middle, last):
            channels_first = first <= _COLOURS or middle == last
            channels_last = last <= _COLOURS or first == middle
            if channels_first != channels_last:
                return ["CHW"] if channels_first else ["HWC"]
            return ["CHW", "HWC"]
    return []


# An axis up to this long is likely channels, beside one that is longer.
_FEW_CHANNELS = 16
# Grey, grey and alpha, colour, colour and alpha.
_COLOURS = 4
