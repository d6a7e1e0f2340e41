"""What a sample is: all that a model needs to know of the data.

Shapes: n rows, C channels; size is (), (T,) or (H, W).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vqtool.data.layout import LAYOUTS, LayoutName, row_shape, rows_to_values, values_to_rows
from vqtool.errors import DataError

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


@dataclass(frozen=True)
class SampleSpec:
    """The resolved shape and type of the samples of a data set.

    Attributes:
        layout: which axis of a row is which.
        channels: C; 1 for grids of classes.
        size: the shape behind the channels.
        classes: the number of classes; None for values.
        dtype: the type of the user's array, by its torch name.
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
        """The shape of one row of the user's array."""
        return row_shape(self.layout, self.channels, self.size)

    def samples(self, rows: Tensor) -> Tensor:
        """(n, *row) to (n, C, *size) float32 values, or (n, *size) int64 classes."""
        return rows.to(torch.int64) if self.classes else rows_to_values(rows, self.layout).to(torch.float32)

    def rows(self, samples: Tensor) -> Tensor:
        """Samples back to rows of the user's type: rounded and clamped for integers, cut at one half for booleans."""
        dtype = self.torch_dtype
        rows = samples if self.classes else values_to_rows(samples, self.layout)
        if dtype == torch.bool:
            return rows >= 0.5
        if self.classes:
            return rows.to(dtype)
        if dtype.is_floating_point:
            # The smaller types have less room than the float32 that they are computed in.
            largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
            return rows.clamp(-largest, largest).to(dtype)
        limits = torch.iinfo(dtype)
        # As a double, the largest 64-bit integer would round up, out of range.
        largest = float(limits.max) if int(float(limits.max)) <= limits.max else math.nextafter(float(limits.max), 0)
        return rows.double().round().clamp(limits.min, largest).to(dtype)

    def check_row(self, shape: tuple[int, ...], any_size: bool, what: str) -> None:
        """Refuse rows that are not like these.

        Raises:
            DataError: another number of axes or channels, or another size where `any_size` is False.
        """
        expected = self.row_shape
        channel = LAYOUTS[self.layout].channel
        fits = len(shape) == len(expected) and (channel is None or shape[channel] == expected[channel])
        if not fits or 0 in shape or (shape != expected and not any_size):
            raise DataError(
                f"{what}: rows have shape {shape}, but the model was trained on rows of shape {expected} "
                f"(layout {self.layout})"
            )


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` of torch.float32."""
    return str(dtype).removeprefix("torch.")
