"""Codes of sequences and vectors: waveforms, and rows of numbers.

Shapes: M samples of a code, C channels, T steps.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vqtool.data.layout import rows_to_values
from vqtool.inspection.report.drawing import ACCENT, QUIET, SECOND, drawing
from vqtool.inspection.report.figure import Picture
from vqtool.inspection.report.instances import Instances

_WIDTH, _HEIGHT = 2.8, 1.9
_MARGINS = (0.55, 0.08, 0.42, 0.08)


def picture_of_waves(own: Instances) -> Picture:
    """Windows of samples around the code's position, and the mean of what they decode to."""
    real, decoded = first_channel(own.rows, own), first_channel(own.decoded, own)
    low, high, cell = window(own)
    with drawing(own.name, f"waveforms of code {own.code}", _WIDTH, _HEIGHT, margins=_MARGINS) as made:
        starts = [place * cell for place in own.positions] if cell else [0] * len(real)
        for values, start in zip(real, starts, strict=True):
            made.ax.plot(*_cut(values, start, low, high), color=QUIET, lw=0.8)
        cuts = [_cut(values, start, low, high) for values, start in zip(decoded, starts, strict=True)]
        made.ax.plot(*_mean(cuts), color=SECOND, lw=2)
        if cell:
            made.ax.axvspan(-0.5, cell - 0.5, color=ACCENT, alpha=0.12, lw=0)
        made.ax.set(xlabel="step", ylabel="value")
    return Picture(made.svg, own.title)


def picture_of_vectors(own: Instances) -> Picture:
    """Rows of samples over what they decode to, each number a shade."""
    real, decoded = (rows.double().numpy() for rows in (own.rows, own.decoded))
    shown = own.seen.shown.double()
    with drawing(own.name, f"rows of code {own.code}", _WIDTH, _HEIGHT, margins=_MARGINS) as made:
        both = np.concatenate([real, decoded])
        made.ax.imshow(
            both,
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            vmin=float(shown.min()),
            vmax=float(shown.max()),
        )
        made.ax.axhline(len(real) - 0.5, color="white", lw=2)
        made.ax.set_yticks(
            range(len(both)), [*map(str, own.numbers), "decoded", *[""] * (len(decoded) - 1)], fontsize=6.5
        )
        made.ax.set(xlabel="index in the row")
    return Picture(made.svg, own.title)


def first_channel(rows: Tensor, own: Instances) -> NDArray[np.float64]:
    """The first channel (M, T) of rows of sequences, or the classes of grids."""
    spec = own.seen.tokenizer.spec
    values = rows[:, None] if spec.classes else rows_to_values(rows, spec.layout)
    return values[:, 0].double().numpy()


def window(own: Instances) -> tuple[int, int, int]:
    """First and last step around the start of a token, and the steps of one token; 0 for whole samples."""
    steps = own.seen.samples.size[0]
    if not own.seen.tokenizer.model.any_size:
        return 0, steps, 0
    cell = -(-steps // own.seen.grid[0])
    around = max(cell, 4)
    return -around, cell + around, cell


def _cut(values: NDArray[np.float64], start: int, low: int, high: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    steps = np.arange(max(0, start + low), min(len(values), start + high))
    return steps - start, values[steps]


def _mean(cuts: list[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The mean over cuts, step by step, each where there are any."""
    steps, values = (np.concatenate(part) for part in zip(*cuts, strict=True))
    found = np.unique(steps)
    return found, np.array([values[steps == step].mean() for step in found])
