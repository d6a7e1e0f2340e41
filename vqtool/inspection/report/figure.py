"""Figures of a report page: SVG and PNG markup, captions, and the data behind them as CSV."""

import base64
import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure as MatplotlibFigure
from numpy.typing import NDArray

from vqtool.runtime.terminal import escape_surrogates

# These colours are readable on a white page and on a dark page.
BLUE, ORANGE, RED, GREY = "#2f81d6", "#e07b28", "#d1495b", "#8a8f98"
LINE_COLOURS = [BLUE, ORANGE, "#3f9d5c", "#a267c9", RED, "#1d9fa8", "#b58a1b", "#c4609e"]
_TRANSPARENT = (0.54, 0.56, 0.6, 0.0)
DENSITY_CMAP = LinearSegmentedColormap.from_list("density", [_TRANSPARENT, (0.54, 0.56, 0.6, 0.85)])
DIVERGING_CMAP = LinearSegmentedColormap.from_list("surprise", [to_rgba(RED), _TRANSPARENT, to_rgba(BLUE)])

# Without dates, equal drawings have equal bytes.
_SVG_METADATA: Any = {"Date": None, "Creator": None}

# Placeholder that `_embeddable_svg` replaces by currentColor, the text colour of the page.
_TEXT_COLOUR = "#010203"
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "text.color": _TEXT_COLOUR,
    "axes.edgecolor": _TEXT_COLOUR,
    "axes.labelcolor": _TEXT_COLOUR,
    "xtick.color": _TEXT_COLOUR,
    "ytick.color": _TEXT_COLOUR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.usetex": False,
    "text.parse_math": False,
    "axes.unicode_minus": True,
}

# Left, right, bottom and top margin in inches.
Margins = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """One drawing of a figure.

    Attributes:
        markup: an SVG or `<img>` element. The page does not escape it, so it must not contain text from the user.
        title: plain text above the drawing.
    """

    markup: str
    title: str = ""


@dataclass(frozen=True)
class Table:
    """The data behind a figure."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @property
    def csv(self) -> str:
        """Comma-separated values with a header line; floats have six significant digits to keep the page small."""
        text = io.StringIO()
        rows = [[f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in self.rows]
        csv.writer(text, lineterminator="\n").writerows([self.columns, *rows])
        return text.getvalue()

    @property
    def formatted(self) -> list[list[str]]:
        """Cells as text for a table on the page: floats with three decimals, integers with thousands separators."""
        return [[_format_cell(cell) for cell in row] for row in self.rows]

    @property
    def uri(self) -> str:
        """The CSV as a data URI, for a download link; surrogates are escaped."""
        return "data:text/csv;charset=utf-8;base64," + base64.b64encode(escape_surrogates(self.csv).encode()).decode()


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        name: HTML id of the figure and stem of its CSV file.
        axes: description of the axes, colours and marks.
        interpretation: how to read the figure, in a few sentences.
        data: the plotted values.
        show_data: also show `data` as a table on the page.
    """

    name: str
    title: str
    pictures: Sequence[Picture]
    axes: str
    interpretation: str
    data: Table = field(repr=False)
    show_data: bool = False


class Drawing:
    """Matplotlib axes that `svg_drawing` turns into SVG markup.

    The arguments are those of `svg_drawing`.

    Attributes:
        figure: the Matplotlib figure.
        axes: array of axes, (rows, columns).
        svg: the markup; empty until the `svg_drawing` block ends.
    """

    def __init__(
        self, width: float, height: float, rows: int, columns: int, margins: Margins | None, **options: Any
    ) -> None:
        self.figure = MatplotlibFigure(figsize=(width, height), layout=None if margins else "constrained")
        if margins:
            left, right, bottom, top = margins
            self.figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
        self.axes: NDArray[Any] = self.figure.subplots(rows, columns, squeeze=False, **options)
        self.svg = ""

    @property
    def ax(self) -> Axes:
        """The top left axes, for drawings with one."""
        first: Axes = self.axes[0, 0]
        return first

    def add_colorbar(self, mappable: Any, label: str) -> None:
        """Add the colour bar of an image, `mappable`, beside all axes."""
        bar = self.figure.colorbar(mappable, ax=list(self.axes.flat), label=label, shrink=0.8, aspect=25)
        bar.outline.set_visible(False)


@contextmanager
def svg_drawing(
    name: str,
    label: str,
    width: float = 4.6,
    height: float = 2.7,
    rows: int = 1,
    columns: int = 1,
    margins: Margins | None = None,
    **options: Any,
) -> Iterator[Drawing]:
    """Yield a drawing, and set its `svg` when the block ends. Equal drawings give equal bytes.

    The markup has no background and uses the text colour of the page.

    Args:
        name: salt of the element ids; must be unique on the page.
        label: description for screen readers; it is not escaped, so it must not contain text from the user.
        width, height: size in inches.
        rows, columns: number of axes.
        margins: fixed margins; None: Matplotlib fits them to the labels, which doubles the drawing time.
        options: passed to `matplotlib.figure.Figure.subplots`.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        drawing = Drawing(width, height, rows, columns, margins, **options)
        yield drawing
        text = io.StringIO()
        drawing.figure.savefig(text, format="svg", metadata=_SVG_METADATA, dpi=180)
        drawing.svg = _embeddable_svg(text.getvalue(), label)


def png_element(pixels: NDArray[Any], label: str, width: int) -> str:
    """Return an `<img>` element with an embedded PNG.

    Args:
        pixels: RGBA (H, W, 4); values are clipped to [0, 1].
        label: description for screen readers; it is not escaped, so it must not contain text from the user.
        width: displayed width in CSS pixels.
    """
    from matplotlib.image import imsave

    content = io.BytesIO()
    imsave(content, (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8), format="png", metadata={"Software": ""})
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img class="pixels" width="{width}" alt="{label}" src="data:image/png;base64,{data}">'


def _embeddable_svg(svg: str, label: str) -> str:
    """Convert an SVG file to an element of an HTML page that scales with the page and has its text colour.

    Removes what would clash between drawings on one page: `<style>` elements, which apply to the whole page, and ids of
    groups, which are the same in every drawing.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = svg.replace(_TEXT_COLOUR, "currentColor").replace('xmlns:xlink="http://www.w3.org/1999/xlink" ', "")
    svg = svg.replace(' xmlns="http://www.w3.org/2000/svg"', "").replace("xlink:href", "href")
    svg = re.sub(r'^<svg ([^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r"<svg \1", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _format_cell(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.3f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
