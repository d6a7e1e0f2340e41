"""Samples, their codes, and what decodes from these, beside each other.

Shapes: n samples, L positions per sample, Q levels, K codes.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from vqtool.data.layout import rows_to_values
from vqtool.inspection.report.codebook_map import principal_plane
from vqtool.inspection.report.collector import LEVELS
from vqtool.inspection.report.drawing import ACCENT, SECOND, drawing
from vqtool.inspection.report.figure import Figure, Picture, Table
from vqtool.inspection.report.inputs import Seen
from vqtool.inspection.report.pixels import Painter, Pixels

Colours = NDArray[np.float64]

# Grids up to so many cells a side have their codes written in.
_WRITTEN = 8
# Inches around pictures beside each other, and around a wave over its codes.
_BESIDE, _BELOW = (0.25, 0.08, 0.2, 0.22), (0.55, 0.08, 0.3, 0.22)
# Inches: a strip of codes, and the room above it, for the numbers below a wave.
_STRIP, _GAP = 0.3, 0.27


def index_maps_figure(seen: Seen) -> Figure | None:
    """A picture a sample; None for vectors, which have nothing to lay out."""
    size = seen.samples.size
    if not size:
        return None
    levels = seen.indices.shape[2]
    colours = [code_colours(seen, level) for level in range(min(levels, LEVELS))]
    draw = _picture if len(size) == 2 else _wave
    rows = [
        (seen.row_number(n), position, level, int(seen.indices[n, position, level]))
        for n in range(len(seen.shown))
        for position in range(seen.indices.shape[1])
        for level in range(levels)
    ]
    which = (
        f" The first {LEVELS} of {levels} levels are drawn; the CSV file has all of them." if levels > LEVELS else ""
    )
    return Figure(
        name="index-maps",
        title="Samples and their codes",
        pictures=[draw(seen, number, colours) for number in range(len(seen.shown))],
        axes=(
            "Left and right: pixels of the input and of its reconstruction. Codes: "
            + ("the token grid." if len(seen.grid) == 2 else "tokens in order; they have no position in the image.")
            if len(size) == 2
            else "Horizontal: time steps. Vertical: value of the first channel. Below: the codes, first token to last."
        )
        + " The colour of a code is its position on the first three principal components of the latents, as red, green "
        f"and blue.{which}",
        meaning="Similar colours are codes near each other; a code has the same colour in all samples. Uniform areas "
        "of a sample should have uniform codes.",
        numbers=Table(["row", "position", "level", "code"], rows),
    )


def code_colours(seen: Seen, level: int = 0) -> Colours:
    """A colour (K, 3) for each code of a level, so that codes near each other have like ones."""
    if not seen.collected.codes:
        size = seen.tokenizer.model.quantizer.codebook_sizes[level]
        return np.repeat(np.linspace(0.1, 0.9, size)[:, None], 3, axis=1)
    codes, latents = seen.collected.codes[level], seen.collected.latents[level]
    plane = principal_plane(latents, 3)
    low, high = np.quantile(plane.project(latents), [0.02, 0.98], axis=0)
    coloured: Colours = ((plane.project(codes) - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return 0.12 + 0.8 * coloured


def _picture(seen: Seen, number: int, colours: Sequence[Colours]) -> Picture:
    """Input, codes and what is decoded in a row; the codes of several levels in a row of their own."""
    painter = Painter(seen.tokenizer.spec, seen.shown)
    real, restored = painter.paint(seen.shown)[number], painter.paint(seen.restored)[number]
    levels, label = len(colours), f"sample {number} and its codes"
    shape = (1, 3) if levels == 1 else (2, max(2, levels))
    width, height = (4.6 / 3 * shape[1], 1.75 * shape[0])
    with drawing(f"sample-{number}", label, width, height, *shape, _BESIDE) as made:
        first, second, *others = made.axes.flat
        strips = [second] if levels == 1 else list(made.axes[1, :levels])
        last = others[0] if levels == 1 else second
        for ax in set(made.axes.flat) - {first, last, *strips}:
            ax.set_visible(False)
        _show(first, real, "input")
        for level, (ax, own) in enumerate(zip(strips, colours, strict=True)):
            _codes(ax, _grid(seen, number, level), own, _title(level, levels))
        _show(last, restored, "decoded")
    return Picture(made.svg, f"row {seen.row_number(number)}")


def _title(level: int, levels: int) -> str:
    return "codes" if levels == 1 else f"codes, level {level}"


def _wave(seen: Seen, number: int, colours: Sequence[Colours]) -> Picture:
    spec = seen.tokenizer.spec
    waves = [
        (rows[:, None] if spec.classes else rows_to_values(rows, spec.layout))[number, 0].double().numpy()
        for rows in (seen.shown, seen.restored)
    ]
    levels = len(colours)
    drawn, shape = (4 + levels) * _STRIP, (1 + levels, 1)
    ratios = {"height_ratios": [4, *[1] * levels], "hspace": _GAP * shape[0] / drawn}
    height = drawn + levels * _GAP + _BELOW[2] + _BELOW[3]
    with drawing(f"sample-{number}", f"sample {number}", 4.6, height, *shape, _BELOW, gridspec_kw=ratios) as made:
        wave, *strips = made.axes[:, 0]
        for values, colour, name in zip(waves, (ACCENT, SECOND), ("input", "decoded"), strict=True):
            wave.plot(values, color=colour, label=name, drawstyle="steps-mid" if spec.classes else "default")
        wave.set(ylabel="class" if spec.classes else "value", xlim=(-0.5, len(waves[0]) - 0.5))
        wave.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
        for level, (strip, own) in enumerate(zip(strips, colours, strict=True)):
            _codes(strip, _grid(seen, number, level), own, "", aspect="auto")
            strip.set_ylabel(f"{level}" if levels > 1 else "", rotation=0, va="center", labelpad=8)
        below = "codes" if levels == 1 else "codes per level"
        strips[-1].set(xlabel=f"step, 0 to {len(waves[0]) - 1}; strips: {below}")
    return Picture(made.svg, f"row {seen.row_number(number)}")


def _grid(seen: Seen, number: int, level: int) -> NDArray[np.int64]:
    """A sample's codes of a level as they lie (rows, columns); of a row of positions, one row, or several of a long
    one."""
    codes = seen.indices[number, :, level].numpy()
    if len(seen.grid) == 2:
        return codes.reshape(seen.grid)
    if len(seen.samples.size) == 2:
        side = int(np.sqrt(len(codes)))
        return codes.reshape(-1, side) if side * side == len(codes) else codes[None]
    return codes[None]


def _show(ax: Axes, picture: Pixels, title: str) -> None:
    ax.imshow(picture, interpolation="nearest")
    ax.set_title(title)
    ax.set_xticks([0, picture.shape[1] - 1])
    ax.set_yticks([0, picture.shape[0] - 1])


def _codes(
    ax: Axes, codes: NDArray[np.int64], colours: Colours, title: str, aspect: Literal["equal", "auto"] = "equal"
) -> None:
    ax.imshow(colours[codes], interpolation="nearest", aspect=aspect)
    ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])
    if max(codes.shape) > _WRITTEN:
        return
    for (row, column), code in np.ndenumerate(codes):
        dark = colours[code].mean() < 0.55
        size = 8 if codes.shape[1] <= 4 else 6 if codes.max() < 1000 else 4.5
        ax.text(column, row, str(code), ha="center", va="center", fontsize=size, color="white" if dark else "black")
