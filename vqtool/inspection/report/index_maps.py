"""Samples, their codes, and what decodes from these, beside each other.

Shapes: n samples, L positions per sample, Q levels, K codes.
"""

from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from vqtool.data.layout import rows_to_values
from vqtool.inspection.report.codebook_map import principal_plane
from vqtool.inspection.report.drawing import ACCENT, SECOND, drawing
from vqtool.inspection.report.figure import Figure, Picture, Table
from vqtool.inspection.report.material import Seen
from vqtool.inspection.report.pixels import Painter, Pixels

# Grids up to so many cells a side have their codes written in.
_WRITTEN = 8
# Inches around pictures beside each other, and around a wave over its codes.
_BESIDE, _BELOW = (0.25, 0.08, 0.2, 0.22), (0.55, 0.08, 0.3, 0.22)


def index_maps_figure(seen: Seen) -> Figure | None:
    """A picture a sample; None for vectors, which have nothing to lay out."""
    size = seen.samples.size
    if not size:
        return None
    colours = code_colours(seen)
    draw = _picture if len(size) == 2 else _wave
    levels = seen.indices.shape[2]
    rows = [
        (seen.row_number(n), position, level, int(seen.indices[n, position, level]))
        for n in range(len(seen.shown))
        for position in range(seen.indices.shape[1])
        for level in range(levels)
    ]
    which = " The codes are those of level 0; the numbers hold all levels." if levels > 1 else ""
    return Figure(
        name="index-maps",
        title="Samples and their codes",
        pictures=[draw(seen, number, colours) for number in range(len(seen.shown))],
        axes=(
            "Across and down: pixels, or positions of the grid of codes"
            + ("." if len(seen.grid) == 2 else ", which here have no place in the picture and are laid out in order.")
            if len(size) == 2
            else "Across: steps. Up: value of the first channel; below, the codes, from the first position to the last."
        )
        + f" A code's colour is its place along the three directions in which latents differ most.{which}",
        meaning="Like colours are codes that lie near each other; the same code has the same colour everywhere. Where "
        "the sample is plain the codes should be, too.",
        numbers=Table(["row", "position", "level", "code"], rows),
    )


def code_colours(seen: Seen) -> NDArray[np.float64]:
    """A colour (K, 3) for each code of the first level, so that codes near each other have like ones."""
    if not seen.collected.codes:
        size = seen.tokenizer.model.quantizer.codebook_sizes[0]
        return np.repeat(np.linspace(0.1, 0.9, size)[:, None], 3, axis=1)
    codes, latents = seen.collected.codes[0], seen.collected.latents[0]
    plane = principal_plane(latents, 3)
    low, high = np.quantile(plane.project(latents), [0.02, 0.98], axis=0)
    coloured: NDArray[np.float64] = ((plane.project(codes) - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return 0.12 + 0.8 * coloured


def _picture(seen: Seen, number: int, colours: NDArray[np.float64]) -> Picture:
    painter = Painter(seen.tokenizer.spec, seen.shown)
    real, restored = painter.paint(seen.shown)[number], painter.paint(seen.restored)[number]
    with drawing(f"sample-{number}", f"sample {number} and its codes", 4.6, 1.75, 1, 3, _BESIDE) as made:
        left, middle, right = made.axes[0]
        _show(left, real, "input")
        _codes(middle, _grid(seen, number), colours)
        _show(right, restored, "decoded")
    return Picture(made.svg, f"row {seen.row_number(number)}")


def _wave(seen: Seen, number: int, colours: NDArray[np.float64]) -> Picture:
    spec = seen.tokenizer.spec
    waves = [
        (rows[:, None] if spec.classes else rows_to_values(rows, spec.layout))[number, 0].double().numpy()
        for rows in (seen.shown, seen.restored)
    ]
    ratios = {"height_ratios": [4, 1], "hspace": 0.35}
    with drawing(f"sample-{number}", f"sample {number}", 4.6, 2.3, 2, 1, _BELOW, gridspec_kw=ratios) as made:
        wave, strip = made.axes[:, 0]
        for values, colour, name in zip(waves, (ACCENT, SECOND), ("input", "decoded"), strict=True):
            wave.plot(values, color=colour, label=name, drawstyle="steps-mid" if spec.classes else "default")
        wave.set(ylabel="class" if spec.classes else "value", xlim=(-0.5, len(waves[0]) - 0.5))
        wave.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
        _codes(strip, _grid(seen, number), colours, aspect="auto")
        strip.set(xlabel=f"step, from 0 to {len(waves[0]) - 1}; below the wave, codes", title="")
    return Picture(made.svg, f"row {seen.row_number(number)}")


def _grid(seen: Seen, number: int) -> NDArray[np.int64]:
    """The codes of a sample as they lie (rows, columns); of a row of positions, one row, or several of a long one."""
    codes = seen.indices[number, :, 0].numpy()
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
    ax: Axes, codes: NDArray[np.int64], colours: NDArray[np.float64], aspect: Literal["equal", "auto"] = "equal"
) -> None:
    ax.imshow(colours[codes], interpolation="nearest", aspect=aspect)
    ax.set_title("codes")
    ax.set_xticks([])
    ax.set_yticks([])
    if max(codes.shape) > _WRITTEN:
        return
    for (row, column), code in np.ndenumerate(codes):
        dark = colours[code].mean() < 0.55
        size = 8 if codes.shape[1] <= 4 else 6
        ax.text(column, row, str(code), ha="center", va="center", fontsize=size, color="white" if dark else "black")
