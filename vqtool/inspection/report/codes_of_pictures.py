"""Codes of images and grids: patches, where positions lie over pixels, and else whole samples.

Shapes: M samples of a code, H rows of pixels, W columns.
"""

import numpy as np
from numpy.typing import NDArray

from vqtool.inspection.report.collector import PLACES
from vqtool.inspection.report.drawing import png
from vqtool.inspection.report.figure import Picture
from vqtool.inspection.report.instances import Instances
from vqtool.inspection.report.pixels import Painter, Pixels, mosaic, patch

# Width of a card, in the page's pixels.
_WIDTH = 260
# Whole samples shown of a code.
_WHOLE = 3


def picture_of_patches(own: Instances) -> Picture:
    """Real patches over decoded ones."""
    painter = Painter(own.seen.tokenizer.spec, own.seen.shown)
    height, width = own.seen.grid
    rows = [
        [patch(picture, (height, width), place) for picture, place in zip(painted, own.positions, strict=True)]
        for painted in (painter.paint(own.rows), painter.paint(own.decoded))
    ]
    return Picture(png(mosaic(_filled(rows)), f"patches of code {own.code}", _WIDTH), own.title)


def picture_of_whole(own: Instances) -> Picture:
    """Three real samples over decoded ones, and where the code makes a difference in all that were kept."""
    painter = Painter(own.seen.tokenizer.spec, own.seen.shown)
    real, decoded = list(painter.paint(own.rows)), painter.paint(own.decoded)
    changed = np.abs(decoded - painter.paint(own.without)).max(axis=-1) > 1 / 32
    say = _heat(changed.mean(axis=0))
    pictures = mosaic(_filled([[say, *real[:_WHOLE]], [np.zeros_like(say), *decoded[:_WHOLE]]], 1 + _WHOLE))
    return Picture(png(pictures, f"samples of code {own.code}", _WIDTH), own.title)


def _heat(shares: NDArray[np.float64]) -> Pixels:
    """Shares (H, W) in a red that grows on a grey ground."""
    heat = np.empty((*shares.shape, 4))
    heat[...] = (0.54, 0.56, 0.6, 0.25)
    strength = shares[..., None]
    return heat * (1 - strength) + np.array([0.82, 0.29, 0.36, 1.0]) * strength


def _filled(rows: list[list[Pixels]], columns: int = PLACES) -> list[list[Pixels]]:
    """Rows of at least so many pictures, with clear ones at the end, so that all cards have one scale."""
    clear = np.zeros_like(rows[0][0])
    return [row + [clear] * (columns - len(row)) for row in rows]
