"""Samples as pixels, and patches of them.

Shapes: n samples, C channels, H rows of pixels, W columns; pixels are (…, 4), red, green, blue and how opaque.
"""

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

from vqtool.data import SampleSpec
from vqtool.data.layout import rows_to_values

Pixels = NDArray[np.float64]


class Painter:
    """Paints rows of one data set, all on one scale.

    Args:
        rows: (n, *row) that the scale is taken from.
    """

    def __init__(self, spec: SampleSpec, rows: Tensor) -> None:
        self._spec = spec
        values = rows.double()
        self._low, self._high = float(values.min()), float(values.max())

    def paint(self, rows: Tensor) -> Pixels:
        """(n, *row) to (n, H, W, 4): colours as they are, classes each in its own, all else by the first channel."""
        if self._spec.classes:
            colours = np.asarray(colormaps["turbo"](np.linspace(0.05, 0.95, self._spec.classes)))
            painted: Pixels = colours[rows.long().numpy()]
            return painted
        values = (rows_to_values(rows, self._spec.layout).double() - self._low) / max(self._high - self._low, 1e-12)
        channels = values[:, :3] if values.shape[1] == 3 else values[:, :1].expand(-1, 3, -1, -1)
        opaque = torch.ones_like(channels[:, :1])
        return torch.cat([channels.clamp(0, 1), opaque], dim=1).permute(0, 2, 3, 1).numpy()


def patch(picture: Pixels, grid: tuple[int, int], position: int) -> Pixels:
    """The cell of a picture (H, W, 4) behind a position of a grid over it, and half a cell around; clear outside."""
    height, width = (-(-side // cells) for side, cells in zip(picture.shape[:2], grid, strict=True))
    top, left = position // grid[1] * height, position % grid[1] * width
    around = (max(1, height // 2), max(1, width // 2))
    padded = np.pad(picture, ((around[0], around[0] + height), (around[1], around[1] + width), (0, 0)))
    return padded[top : top + height + 2 * around[0], left : left + width + 2 * around[1]]


def mosaic(rows: list[list[Pixels]]) -> Pixels:
    """Pictures of one size in rows and columns, with a clear line between; rows may be of different lengths."""
    height, width = rows[0][0].shape[:2]
    gap = max(1, width // 12)
    columns = max(map(len, rows))
    whole = np.zeros((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 4))
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            whole[top : top + height, left : left + width] = picture
    return whole
