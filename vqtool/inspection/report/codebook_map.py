"""A map of the codebook: codes and latents on the plane in which latents differ most.

Shapes: K codes, S latents, D dimensions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from vqtool.inspection.report.collector import Collected
from vqtool.inspection.report.drawing import ACCENT, DEAD, DENSITY, drawing
from vqtool.inspection.report.figure import Figure, Picture, Table
from vqtool.inspection.words import counted
from vqtool.metrics.usage import Usage

Points = NDArray[np.float64]

# From here on, codes are pixels rather than shapes.
_MANY = 600


@dataclass(frozen=True)
class Plane:
    """The principal axes of latents.

    Attributes:
        mean: (D,)
        axes: (D, n) the directions of greatest variance, the greatest first.
        shares: (n,) of the variance, that lie along each.
    """

    mean: Points
    axes: Points
    shares: Points

    def project(self, vectors: NDArray[np.float32]) -> Points:
        """(m, D) to (m, n)."""
        return (vectors.astype(np.float64) - self.mean) @ self.axes


def principal_plane(vectors: NDArray[np.float32], dimensions: int = 2) -> Plane:
    """The plane of vectors (S, D); a direction's largest part is positive, so that the same vectors give the same one.

    Where D is less than `dimensions`, the others are zero.
    """
    values = vectors.astype(np.float64)
    mean = values.mean(axis=0)
    variances, directions = np.linalg.eigh(np.atleast_2d(np.cov((values - mean).T, bias=True)))
    order = np.argsort(-variances)[:dimensions]
    axes = directions[:, order]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    shares = variances[order].clip(min=0) / max(variances.clip(min=0).sum(), 1e-300)
    missing = dimensions - axes.shape[1]
    return Plane(mean, np.pad(axes, ((0, 0), (0, missing))), np.pad(shares, (0, missing)))


def map_figure(collected: Collected, levels: list[Usage]) -> Figure | None:
    """Codes over the density of latents, level by level; None where there are none to draw."""
    if not collected.codes:
        return None
    pictures, rows = [], []
    for level, (codes, latents) in enumerate(zip(collected.codes, collected.latents, strict=True)):
        plane = principal_plane(latents)
        places, hits = plane.project(codes), np.asarray(levels[level].counts)
        title = f"level {level}" if len(levels) > 1 else ""
        pictures.append(Picture(_draw(level, plane, places, plane.project(latents), hits), title))
        rows += [(level, k, float(x), float(y), int(hits[k])) for k, (x, y) in enumerate(places)]
    return Figure(
        name="map",
        title="Codebook map",
        pictures=pictures,
        axes="Horizontal and vertical: the first two principal components of the latents, in the units of the latents. "
        "In parentheses: the fraction of the variance that each component explains.",
        meaning="Discs are codes; a larger disc has more hits. The grey background is the density of the latents. Red "
        "crosses are dead codes. Codes should be where the latents are: a dead code far from the grey area cannot get "
        "hits. The map is a projection, so codes that overlap in it can be far apart in the other dimensions.",
        numbers=Table(["level", "code", "x", "y", "hits"], rows),
    )


def _draw(level: int, plane: Plane, codes: Points, latents: Points, hits: NDArray[np.int64]) -> str:
    used = hits > 0
    many = len(hits) > _MANY
    sizes = np.maximum(60 * hits[used] / max(1, hits.max()), 1.0 if many else 3.0)
    with drawing(f"map-{level}", f"codebook map with {counted(len(hits), 'code')}", height=3.7) as made:
        ax = made.ax
        grid = {"gridsize": 45, "mincnt": 1, "cmap": DENSITY, "norm": LogNorm(vmin=0.3), "linewidths": 0.1}
        ax.hexbin(latents[:, 0], latents[:, 1], rasterized=True, **grid)  # type: ignore[arg-type]
        _scatter(ax, codes[~used], 6 if many else 14, many, marker="x", color=DEAD, lw=0.8, alpha=0.5 if many else 1)
        _scatter(ax, codes[used], sizes, many, color=ACCENT, alpha=0.7, lw=0)
        ax.set_xlabel(f"first component ({plane.shares[0]:.0%})")
        ax.set_ylabel(f"second component ({plane.shares[1]:.0%})")
        _frame(ax, np.concatenate([codes[used], latents]))
    return made.svg


def _scatter(ax: Axes, points: Points, sizes: Points | float, many: bool, **style: Any) -> None:
    ax.scatter(points[:, 0], points[:, 1], s=sizes, rasterized=many, **style)


def _frame(ax: Axes, points: Points) -> None:
    """Show what is used; a dead code far away would make all else a dot."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.08 * np.maximum(high - low, 1e-6)
    ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
    ax.set_ylim(low[1] - margin[1], high[1] + margin[1])
