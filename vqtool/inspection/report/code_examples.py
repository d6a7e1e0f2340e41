"""Figures of examples: for each of some codes, the samples whose latents are nearest to it, and their reconstructions.

Shapes: M examples of a code, L tokens per sample, Q levels, H pixel rows, W pixel columns, T time steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.inspection.evidence import residual_depth
from vqtool.inspection.report.codebook_figures import codes_by_hits
from vqtool.inspection.report.figure import BLUE, GREY, ORANGE, Figure, Picture, Table, png_element, svg_drawing
from vqtool.inspection.report.index_maps import Pixels, SampleRenderer, first_channel
from vqtool.inspection.report.inputs import EXAMPLES_PER_CODE, ModelSamples
from vqtool.metrics.usage import Usage
from vqtool.runtime.terminal import pluralize

_MOST_USED_CODES, _LEAST_USED_CODES = 8, 4

_IMAGE_WIDTH_PIXELS = 260
# Columns of a picture of whole samples, besides the heat map of changed pixels.
_MAX_WHOLE_SAMPLES = 3
# Pixel values in [0, 1] that differ by more than this count as changed.
_MIN_PIXEL_CHANGE = 1 / 32

_PLOT_WIDTH_INCHES, _PLOT_HEIGHT_INCHES = 2.8, 1.9
_PLOT_MARGINS_INCHES = (0.55, 0.08, 0.42, 0.08)


@dataclass(frozen=True)
class CodeExamples:
    """The samples of the M tokens whose latents are nearest to a code, nearest first.

    Attributes:
        token_fraction: hits divided by the number of all tokens.
        row_indices: (M,), indices of the samples in the user's array.
        positions: (M,), the position of the token in its sample, 0 to L - 1.
        rows: (M, *row), the samples.
        reconstructions: (M, *row), decoded from the indices of the samples.
        reconstructions_without_code: (M, *row), decoded from indices in which the most used other code of the level
            replaces this code at the position.
    """

    model_samples: ModelSamples
    level: int
    code: int
    hits: int
    token_fraction: float
    row_indices: list[int]
    positions: list[int]
    rows: Tensor
    reconstructions: Tensor
    reconstructions_without_code: Tensor

    @property
    def drawing_name(self) -> str:
        """Name of the drawing, unique on the page."""
        return f"meaning-{self.level}-{self.code}"

    @property
    def title(self) -> str:
        """Title of the picture, such as `code 3: 12 hits (1.5%)`."""
        return f"code {self.code}: {pluralize(self.hits, 'hit')} ({self.token_fraction:.1%})"


@dataclass(frozen=True)
class _DrawingStyle:
    """How examples of one kind of sample are drawn, with the texts `axes` and `interpretation` of `Figure`."""

    draw: Callable[[CodeExamples], Picture]
    axes: str
    interpretation: str


def code_examples_figures(
    model_samples: ModelSamples,
    levels: list[Usage],
    most_used: int = _MOST_USED_CODES,
    least_used: int = _LEAST_USED_CODES,
) -> list[Figure]:
    """Draw one figure for each of the first levels, with one picture per selected code.

    Levels without hits have no figure, and neither has a codebook too large for `DataPass.nearest_tokens`.

    Args:
        levels: usage of all levels.
        most_used, least_used: number of codes to show, as for `select_codes`.
    """
    figures = []
    for level, nearest_tokens in enumerate(model_samples.data_pass.nearest_tokens):
        codes = select_codes(levels[level], nearest_tokens, most_used, least_used)
        if codes:
            figures.append(_level_figure(model_samples, level, codes, levels))
    return figures


def _level_figure(model_samples: ModelSamples, level: int, codes: list[int], levels: list[Usage]) -> Figure:
    style = _drawing_style(model_samples)
    examples_per_code = _examples(model_samples, level, codes, levels[level])
    of_level = f" of level {level}" if len(levels) > 1 else ""
    is_residual = level % residual_depth(model_samples.tokenizer.settings.model.quantizer) > 0
    return Figure(
        name=f"examples-{level}" if level else "examples",
        title=f"Example samples for the codes{of_level}",
        pictures=[style.draw(examples) for examples in examples_per_code],
        axes=style.axes,
        interpretation=f"{style.interpretation} The most used codes{of_level} come first, then the least used codes "
        f"that have hits. For each code: the samples whose {'residuals' if is_residual else 'latents'} are nearest to "
        "it, nearest first. The samples of one code should look similar.",
        data=Table(
            ["code", "hits", "row", "position"],
            [
                (examples.code, examples.hits, row, position)
                for examples in examples_per_code
                for row, position in zip(examples.row_indices, examples.positions, strict=True)
            ],
        ),
    )


def select_codes(
    usage: Usage,
    nearest_tokens: NDArray[np.int64],
    most_used: int = _MOST_USED_CODES,
    least_used: int = _LEAST_USED_CODES,
) -> list[int]:
    """Return the most used and the least used codes among those with a nearest token, in descending order of hits.

    Args:
        nearest_tokens: (K, M), -1 where a code has fewer than M tokens.
        most_used, least_used: number of codes from the start and the end of that order, at least 1. Each code is
            returned once; if there are no more codes than the sum, all are.
    """
    codes = [
        int(code) for code in codes_by_hits(usage.counts) if code < len(nearest_tokens) and nearest_tokens[code, 0] >= 0
    ]
    return codes if len(codes) <= most_used + least_used else codes[:most_used] + codes[-least_used:]


def _examples(model_samples: ModelSamples, level: int, codes: list[int], usage: Usage) -> list[CodeExamples]:
    """Return the examples of each code of a level. One batch for all codes is faster than code by code.

    Args:
        usage: usage of this level.
    """
    nearest = [model_samples.data_pass.nearest_tokens[level][code] for code in codes]
    nearest = [tokens[tokens >= 0] for tokens in nearest]
    tokens, counts = np.concatenate(nearest), [len(tokens) for tokens in nearest]
    samples, positions = np.divmod(tokens, int(np.prod(model_samples.grid)))
    rows = model_samples.take_rows(samples.tolist())
    indices = model_samples.encode(rows)
    order = codes_by_hits(usage.counts)
    substitutes = [int(order[min(1, len(order) - 1)] if code == order[0] else order[0]) for code in codes]
    replaced = replace_codes(
        indices, level, torch.from_numpy(positions), torch.from_numpy(np.repeat(substitutes, counts))
    )
    reconstructions, without_code = model_samples.decode(indices), model_samples.decode(replaced)
    row_indices = [model_samples.row_index(sample) for sample in samples.tolist()]
    ends = np.cumsum(counts)
    return [
        CodeExamples(
            model_samples=model_samples,
            level=level,
            code=code,
            hits=usage.counts[code],
            token_fraction=usage.counts[code] / max(1, usage.tokens),
            row_indices=row_indices[end - count : end],
            positions=positions[end - count : end].tolist(),
            rows=rows[end - count : end],
            reconstructions=reconstructions[end - count : end],
            reconstructions_without_code=without_code[end - count : end],
        )
        for code, count, end in zip(codes, counts, ends, strict=True)
    ]


def replace_codes(indices: Tensor, level: int, positions: Tensor, codes: Tensor) -> Tensor:
    """Return a copy of indices (n, L) or (n, L, Q) with codes[i] at positions[i] of sample i, in one level.

    Args:
        positions, codes: (n,).
    """
    replaced = indices.clone()
    replaced.view(*indices.shape[:2], -1)[torch.arange(len(indices)), positions, level] = codes
    return replaced


def _drawing_style(model_samples: ModelSamples) -> _DrawingStyle:
    size, grid = model_samples.samples.size, model_samples.grid
    # Encoders for any input size are local (identity, convolutions): a token covers a fixed region of the sample.
    is_local = len(grid) == len(size) and model_samples.tokenizer.model.any_size
    if not size:
        return _DrawingStyle(
            _draw_vectors,
            "Horizontal: index in the row. Vertical: samples, labelled with their row in the data; below the white "
            "line, their reconstructions. Colour: value, from dark (low) to bright (high).",
            "Each picture is a code.",
        )
    if len(size) == 1:
        return _DrawingStyle(
            _draw_waveforms,
            "Horizontal: time steps, relative to the first step of the token. Vertical: value of the first channel, in "
            "the units of the data. Thin lines: samples. Thick line: the mean of their reconstructions. Shaded: the "
            "steps that the token covers."
            if is_local
            else "Horizontal: time steps. Vertical: value of the first channel, in the units of the data. Thin lines: "
            "samples. Thick line: the mean of their reconstructions.",
            "Each picture is a code.",
        )
    if is_local:
        return _DrawingStyle(
            _draw_patches,
            "Upper row: patches of input images, with the pixels of the token in the middle and a margin of half a "
            "token; transparent outside the image. Lower row: the same patches of the reconstructions.",
            "Each card is a code.",
        )
    return _DrawingStyle(
        _draw_whole_samples,
        "Whole samples are shown, because each code depends on the whole sample. Upper row: inputs. Lower row: their "
        "reconstructions. Left: pixels or tiles of the reconstruction that change if this code is replaced by the most "
        "used other code; more red means in more of these samples.",
        "Each card is a code; the red area shows which part of the sample it controls.",
    )


def _draw_vectors(examples: CodeExamples) -> Picture:
    """Draw a heat map of the rows, and below them their reconstructions. The colour scale is the same for all codes."""
    rows, reconstructions = examples.rows.double().numpy(), examples.reconstructions.double().numpy()
    preview = examples.model_samples.preview_rows.double()
    name, label = examples.drawing_name, f"rows of code {examples.code}"
    with svg_drawing(name, label, _PLOT_WIDTH_INCHES, _PLOT_HEIGHT_INCHES, margins=_PLOT_MARGINS_INCHES) as drawing:
        drawing.ax.imshow(
            np.concatenate([rows, reconstructions]),
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            vmin=float(preview.min()),
            vmax=float(preview.max()),
        )
        drawing.ax.axhline(len(rows) - 0.5, color="white", lw=2)
        labels = [*map(str, examples.row_indices), "decoded", *[""] * (len(reconstructions) - 1)]
        drawing.ax.set_yticks(range(len(labels)), labels, fontsize=6.5)
        drawing.ax.set(xlabel="index in the row")
    return Picture(drawing.svg, examples.title)


def _draw_waveforms(examples: CodeExamples) -> Picture:
    """Draw the first channel of each sample, and the mean of their reconstructions at each time step.

    If tokens cover a fixed region of the sample, draw only a window around the token, with time relative to the first
    step of the token. Otherwise draw the whole samples.
    """
    model_samples = examples.model_samples
    spec, steps = model_samples.tokenizer.spec, model_samples.samples.size[0]
    first, last, token_steps, starts = 0, steps, 0, [0] * len(examples.positions)
    if model_samples.tokenizer.model.any_size:
        token_steps = -(-steps // model_samples.grid[0])
        margin = max(token_steps, 4)
        first, last = -margin, token_steps + margin
        starts = [position * token_steps for position in examples.positions]

    def windows(rows: Tensor) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return the time steps of each window, relative to the start of the token, and the values at these steps."""
        result = []
        for values, start in zip(first_channel(spec, rows), starts, strict=True):
            times = np.arange(max(0, start + first), min(len(values), start + last))
            result.append((times - start, values[times]))
        return result

    name, label = examples.drawing_name, f"waveforms of code {examples.code}"
    with svg_drawing(name, label, _PLOT_WIDTH_INCHES, _PLOT_HEIGHT_INCHES, margins=_PLOT_MARGINS_INCHES) as drawing:
        for times, values in windows(examples.rows):
            drawing.ax.plot(times, values, color=GREY, lw=0.8)
        times, values = (np.concatenate(side) for side in zip(*windows(examples.reconstructions), strict=True))
        distinct = np.unique(times)
        drawing.ax.plot(distinct, [values[times == time].mean() for time in distinct], color=ORANGE, lw=2)
        if token_steps:
            drawing.ax.axvspan(-0.5, token_steps - 0.5, color=BLUE, alpha=0.12, lw=0)
        drawing.ax.set(xlabel="step", ylabel="value")
    return Picture(drawing.svg, examples.title)


def _draw_patches(examples: CodeExamples) -> Picture:
    """Draw the image patch of the token in each sample, and below it the same patch of the reconstruction."""
    renderer = SampleRenderer(examples.model_samples.tokenizer.spec, examples.model_samples.preview_rows)
    rows, columns = examples.model_samples.grid
    patches = [
        [patch(image, (rows, columns), position) for image, position in zip(images, examples.positions, strict=True)]
        for images in (renderer.render(examples.rows), renderer.render(examples.reconstructions))
    ]
    element = png_element(mosaic(patches, EXAMPLES_PER_CODE), f"patches of code {examples.code}", _IMAGE_WIDTH_PIXELS)
    return Picture(element, examples.title)


def _draw_whole_samples(examples: CodeExamples) -> Picture:
    """Draw up to three samples and their reconstructions, and left of them a heat map of the pixels the code changes.

    The heat map is the fraction of all M examples in which a pixel changes without the code.
    """
    renderer = SampleRenderer(examples.model_samples.tokenizer.spec, examples.model_samples.preview_rows)
    inputs, reconstructions = renderer.render(examples.rows), renderer.render(examples.reconstructions)
    difference = np.abs(reconstructions - renderer.render(examples.reconstructions_without_code)).max(axis=-1)
    changed = (difference > _MIN_PIXEL_CHANGE).mean(axis=0)[..., None]
    heat_map = np.array([0.54, 0.56, 0.6, 0.25]) * (1 - changed) + np.array([0.82, 0.29, 0.36, 1.0]) * changed
    upper = [heat_map, *inputs[:_MAX_WHOLE_SAMPLES]]
    lower = [np.zeros_like(heat_map), *reconstructions[:_MAX_WHOLE_SAMPLES]]
    pixels = mosaic([upper, lower], 1 + _MAX_WHOLE_SAMPLES)
    return Picture(png_element(pixels, f"samples of code {examples.code}", _IMAGE_WIDTH_PIXELS), examples.title)


def patch(pixels: Pixels, grid: tuple[int, int], position: int) -> Pixels:
    """Return the part of an image (H, W, 4) that a token covers, with a margin of half a token on every side.

    The patch is transparent outside the image. All tokens of an image give patches of the same size.

    Args:
        grid: number of tokens per column and row of the image.
        position: index of the token in the row-major grid.
    """
    height, width = (-(-side // cells) for side, cells in zip(pixels.shape[:2], grid, strict=True))
    top, left = position // grid[1] * height, position % grid[1] * width
    y_margin, x_margin = max(1, height // 2), max(1, width // 2)
    padded = np.pad(pixels, ((y_margin, y_margin + height), (x_margin, x_margin + width), (0, 0)))
    return padded[top : top + height + 2 * y_margin, left : left + width + 2 * x_margin]


def mosaic(rows: list[list[Pixels]], min_columns: int = 1) -> Pixels:
    """Arrange images (H, W, 4) of one size in rows, with transparent gaps between them.

    The result has at least `min_columns` columns, so that pictures of few examples have the scale of others. Rows may
    differ in length.
    """
    height, width = rows[0][0].shape[:2]
    gap = max(1, width // 12)
    columns = max(min_columns, *map(len, rows))
    canvas = np.zeros((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 4))
    for i, row in enumerate(rows):
        for j, pixels in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = pixels
    return canvas
