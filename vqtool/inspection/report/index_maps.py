"""Figure of samples beside their codes and reconstructions.

Shapes: n samples, L tokens per sample, Q levels, K codes, H pixel rows, W pixel columns, T time steps; pixels are RGBA
(..., 4) in [0, 1].
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from vqtool.data import SampleSpec
from vqtool.data.layout import rows_to_values
from vqtool.inspection.report.codebook_figures import principal_components
from vqtool.inspection.report.figure import BLUE, ORANGE, Figure, Picture, Table, svg_drawing
from vqtool.inspection.report.inputs import MAX_LEVELS, ModelSamples

Pixels = NDArray[np.float64]
Colours = NDArray[np.float64]

# Grids with at most this many cells per side show the number of the code in each cell.
_MAX_LABELLED_GRID_SIDE = 8
# Margins of a row of images, and of a waveform above its strips of codes; left, right, bottom, top.
_IMAGE_MARGINS_INCHES = (0.25, 0.08, 0.2, 0.22)
_WAVEFORM_MARGINS_INCHES = (0.55, 0.08, 0.3, 0.22)
_STRIP_HEIGHT_INCHES = 0.3
# Space above each strip, for the tick labels of the waveform.
_STRIP_GAP_INCHES = 0.27


class SampleRenderer:
    """Renders images and integer grids as RGBA pixels, with the same scale for all rows.

    Args:
        spec: layout and classes of the rows.
        rows: (n, *row), the rows that determine the scale: their minimum is black and their maximum is white.
    """

    def __init__(self, spec: SampleSpec, rows: Tensor) -> None:
        self._spec = spec
        values = rows.double()
        self._low, self._high = float(values.min()), float(values.max())

    def render(self, rows: Tensor) -> Pixels:
        """Render rows (n, *row) as opaque RGBA pixels (n, H, W, 4) in [0, 1].

        Three channels become red, green and blue. With another number of channels, the first is shown in grey. Values
        outside the scale are clipped. Each class of an integer grid has its own colour.
        """
        if self._spec.classes:
            colours = np.asarray(colormaps["turbo"](np.linspace(0.05, 0.95, self._spec.classes)))
            pixels: Pixels = colours[rows.long().numpy()]
            return pixels
        values = (rows_to_values(rows, self._spec.layout).double() - self._low) / max(self._high - self._low, 1e-12)
        channels = values[:, :3] if values.shape[1] == 3 else values[:, :1].expand(-1, 3, -1, -1)
        alpha = torch.ones_like(channels[:, :1])
        return torch.cat([channels.clamp(0, 1), alpha], dim=1).permute(0, 2, 3, 1).numpy()


def first_channel(spec: SampleSpec, rows: Tensor) -> NDArray[np.float64]:
    """Return the first channel (n, T) of rows (n, *row) of sequences, or the classes of integer sequences; float64."""
    values = rows[:, None] if spec.classes else rows_to_values(rows, spec.layout)
    return values[:, 0].double().numpy()


def index_maps_figure(model_samples: ModelSamples) -> Figure | None:
    """Draw input, codes and reconstruction of each preview sample; None for vectors, which have no spatial axes."""
    size = model_samples.samples.size
    if not size:
        return None
    levels = model_samples.preview_indices.shape[2]
    colours = [code_colours(model_samples, level) for level in range(min(levels, MAX_LEVELS))]
    draw = _draw_image if len(size) == 2 else _draw_waveform
    rows = [
        (model_samples.row_index(sample), position, level, int(model_samples.preview_indices[sample, position, level]))
        for sample in range(len(model_samples.preview_rows))
        for position in range(model_samples.preview_indices.shape[1])
        for level in range(levels)
    ]
    omitted = (
        f" The first {MAX_LEVELS} of {levels} levels are drawn; the CSV file has all of them."
        if levels > MAX_LEVELS
        else ""
    )
    return Figure(
        name="index-maps",
        title="Samples and their codes",
        pictures=[draw(model_samples, sample, colours) for sample in range(len(model_samples.preview_rows))],
        axes=(
            "Left and right: pixels of the input and of its reconstruction. Codes: "
            + (
                "the token grid."
                if len(model_samples.grid) == 2
                else "tokens in order; they have no position in the image."
            )
            if len(size) == 2
            else "Horizontal: time steps. Vertical: value of the first channel. Below: the codes, first token to last."
        )
        + " The colour of a code is its position on the first three principal components of the latents, as red, green "
        f"and blue.{omitted}",
        interpretation="Similar colours are codes near each other; a code has the same colour in all samples. Uniform "
        "areas of a sample should have uniform codes.",
        data=Table(["row", "position", "level", "code"], rows),
    )


def code_colours(model_samples: ModelSamples, level: int = 0) -> Colours:
    """Return the RGB colour of each code of a level, (K, 3) in [0, 1]; codes near each other have similar colours.

    Red, green and blue are the first three principal components of the code, scaled so that the 2% and 98% quantiles of
    the latents get the darkest and the brightest value. A codebook that is too large for `DataPass.codebooks` gets
    shades of grey in order of the code numbers.
    """
    if not model_samples.data_pass.codebooks:
        size = model_samples.tokenizer.model.quantizer.codebook_sizes[level]
        return np.repeat(np.linspace(0.1, 0.9, size)[:, None], 3, axis=1)
    codes, latents = model_samples.data_pass.codebooks[level], model_samples.data_pass.latents[level]
    components = principal_components(latents, 3)
    low, high = np.quantile(components.project(latents), [0.02, 0.98], axis=0)
    scaled: Colours = ((components.project(codes) - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return 0.12 + 0.8 * scaled


def _draw_image(model_samples: ModelSamples, sample: int, colours: Sequence[Colours]) -> Picture:
    """Draw input, codes and reconstruction in one row; with several levels, the codes in a second row."""
    renderer = SampleRenderer(model_samples.tokenizer.spec, model_samples.preview_rows)
    image = renderer.render(model_samples.preview_rows)[sample]
    reconstruction = renderer.render(model_samples.preview_reconstructions)[sample]
    levels, label = len(colours), f"sample {sample} and its codes"
    shape = (1, 3) if levels == 1 else (2, max(2, levels))
    width, height = (4.6 / 3 * shape[1], 1.75 * shape[0])
    with svg_drawing(f"sample-{sample}", label, width, height, *shape, _IMAGE_MARGINS_INCHES) as drawing:
        axes = drawing.axes
        code_axes = [axes[0, 1]] if levels == 1 else list(axes[1, :levels])
        reconstruction_ax = axes[0, 2] if levels == 1 else axes[0, 1]
        for ax in set(axes.flat) - {axes[0, 0], reconstruction_ax, *code_axes}:
            ax.set_visible(False)
        _show_pixels(axes[0, 0], image, "input")
        for level, (ax, level_colours) in enumerate(zip(code_axes, colours, strict=True)):
            title = "codes" if levels == 1 else f"codes, level {level}"
            _show_codes(ax, _code_grid(model_samples, sample, level), level_colours, title)
        _show_pixels(reconstruction_ax, reconstruction, "decoded")
    return Picture(drawing.svg, f"row {model_samples.row_index(sample)}")


def _draw_waveform(model_samples: ModelSamples, sample: int, colours: Sequence[Colours]) -> Picture:
    """Draw input and reconstruction as lines, and below them a strip of codes per level."""
    spec = model_samples.tokenizer.spec
    lines = [
        first_channel(spec, rows)[sample]
        for rows in (model_samples.preview_rows, model_samples.preview_reconstructions)
    ]
    levels = len(colours)
    axes_height, shape = (4 + levels) * _STRIP_HEIGHT_INCHES, (1 + levels, 1)
    margins = _WAVEFORM_MARGINS_INCHES
    grid_options = {"height_ratios": [4, *[1] * levels], "hspace": _STRIP_GAP_INCHES * shape[0] / axes_height}
    height = axes_height + levels * _STRIP_GAP_INCHES + margins[2] + margins[3]
    name, label = f"sample-{sample}", f"sample {sample}"
    with svg_drawing(name, label, 4.6, height, *shape, margins, gridspec_kw=grid_options) as drawing:
        ax, *strips = drawing.axes[:, 0]
        for values, colour, line_label in zip(lines, (BLUE, ORANGE), ("input", "decoded"), strict=True):
            ax.plot(values, color=colour, label=line_label, drawstyle="steps-mid" if spec.classes else "default")
        ax.set(ylabel="class" if spec.classes else "value", xlim=(-0.5, len(lines[0]) - 0.5))
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
        for level, (strip, level_colours) in enumerate(zip(strips, colours, strict=True)):
            _show_codes(strip, _code_grid(model_samples, sample, level), level_colours, "", aspect="auto")
            strip.set_ylabel(f"{level}" if levels > 1 else "", rotation=0, va="center", labelpad=8)
        strips_label = "codes" if levels == 1 else "codes per level"
        strips[-1].set(xlabel=f"step, 0 to {len(lines[0]) - 1}; strips: {strips_label}")
    return Picture(drawing.svg, f"row {model_samples.row_index(sample)}")


def _code_grid(model_samples: ModelSamples, sample: int, level: int) -> NDArray[np.int64]:
    """Return the codes of a preview sample and level as a matrix.

    It has the shape of a two-dimensional token grid. Otherwise it is one row (1, L), except for images with a square
    number of tokens, whose codes fill a square in row-major order.
    """
    codes = model_samples.preview_indices[sample, :, level].numpy()
    if len(model_samples.grid) == 2:
        return codes.reshape(model_samples.grid)
    side = int(np.sqrt(len(codes)))
    if len(model_samples.samples.size) == 2 and side * side == len(codes):
        return codes.reshape(side, side)
    return codes[None]


def _show_pixels(ax: Axes, pixels: Pixels, title: str) -> None:
    ax.imshow(pixels, interpolation="nearest")
    ax.set_title(title)
    ax.set_xticks([0, pixels.shape[1] - 1])
    ax.set_yticks([0, pixels.shape[0] - 1])


def _show_codes(
    ax: Axes, codes: NDArray[np.int64], colours: Colours, title: str, aspect: Literal["equal", "auto"] = "equal"
) -> None:
    ax.imshow(colours[codes], interpolation="nearest", aspect=aspect)
    ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])
    if max(codes.shape) > _MAX_LABELLED_GRID_SIDE:
        return
    for (row, column), code in np.ndenumerate(codes):
        text_colour = "white" if colours[code].mean() < 0.55 else "black"
        font_size = 8 if codes.shape[1] <= 4 else 6 if codes.max() < 1000 else 4.5
        ax.text(column, row, str(code), ha="center", va="center", fontsize=font_size, color=text_colour)
