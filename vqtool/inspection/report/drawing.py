"""From matplotlib to markup that fits any page: no background, the page's own colour for text, the same bytes twice."""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Colours that can be told apart on white and on near black.
ACCENT, SECOND, DEAD, QUIET = "#2f81d6", "#e07b28", "#d1495b", "#8a8f98"
SERIES = [ACCENT, SECOND, "#3f9d5c", "#a267c9", DEAD, "#1d9fa8", "#b58a1b", "#c4609e"]
_CLEAR = (0.54, 0.56, 0.6, 0.0)
# From nothing to something, without a background of its own.
DENSITY = LinearSegmentedColormap.from_list("density", [_CLEAR, (0.54, 0.56, 0.6, 0.85)])
# From less over as often as expected to more.
SURPRISE = LinearSegmentedColormap.from_list("surprise", [to_rgba(DEAD), _CLEAR, to_rgba(ACCENT)])

# A date would make every page another.
_NO_METADATA: Any = {"Date": None, "Creator": None}

# Stands for the colour of the page's text until the drawing is markup.
_TEXT = "#010203"
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
    "text.color": _TEXT,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
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


# Inches at the left, right, bottom and top.
Margins = tuple[float, float, float, float]


class Drawing:
    """A drawing under way.

    Attributes:
        axes: (rows, columns) of them.
        svg: the markup, once it is done.
    """

    def __init__(
        self, width: float, height: float, rows: int, columns: int, margins: Margins | None, **options: Any
    ) -> None:
        self._figure = Figure(figsize=(width, height), layout=None if margins else "constrained")
        if margins:
            left, right, bottom, top = margins
            self._figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
        self.axes: NDArray[Any] = self._figure.subplots(rows, columns, squeeze=False, **options)
        self.svg = ""

    @property
    def ax(self) -> Axes:
        """The first of the axes."""
        first: Axes = self.axes[0, 0]
        return first

    def bar(self, mappable: Any, label: str) -> None:
        """A scale of colours."""
        bar = self._figure.colorbar(mappable, ax=list(self.axes.flat), label=label, shrink=0.8, aspect=25)
        bar.outline.set_visible(False)

    def finish(self, label: str) -> None:
        """Make the markup, for which `label` is read out."""
        text = io.StringIO()
        self._figure.savefig(text, format="svg", metadata=_NO_METADATA, dpi=180)
        self.svg = _inline(text.getvalue(), label)


@contextmanager
def drawing(
    name: str,
    label: str,
    width: float = 4.6,
    height: float = 2.7,
    rows: int = 1,
    columns: int = 1,
    margins: Margins | None = None,
    **options: Any,
) -> Iterator[Drawing]:
    """Yield axes to draw on, in inches; afterwards the drawing holds its markup.

    Args:
        name: unlike that of any other drawing of the page.
        label: what it shows, for those who cannot see it.
        margins: where they are known; left out, room is made for what is drawn, which takes as long as drawing it.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        made = Drawing(width, height, rows, columns, margins, **options)
        yield made
        made.finish(label)


def png(pixels: NDArray[Any], label: str, width: int) -> str:
    """An image element of pixels (H, W, 4) in [0, 1], `width` of the page's pixels wide."""
    from matplotlib.image import imsave

    content = io.BytesIO()
    imsave(content, (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8), format="png", metadata={"Software": ""})
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img class="pixels" width="{width}" alt="{label}" src="data:image/png;base64,{data}">'


def _inline(svg: str, label: str) -> str:
    """Markup for within a page, where ids of groups would be there twice, and a style would be the whole page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = svg.replace(_TEXT, "currentColor").replace('xmlns:xlink="http://www.w3.org/1999/xlink" ', "")
    svg = svg.replace(' xmlns="http://www.w3.org/2000/svg"', "").replace("xlink:href", "href")
    svg = re.sub(r'^<svg ([^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r"<svg \1", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
