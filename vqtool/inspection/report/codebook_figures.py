"""Figures of the codebook: hits per code, and a map of codes and latents on their principal components.

Shapes: K codes, S latents, D code dimension, C principal components.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from vqtool.inspection.report.figure import BLUE, DENSITY_CMAP, GREY, RED, Figure, Picture, Table, svg_drawing
from vqtool.inspection.report.inputs import DataPass
from vqtool.metrics.usage import Usage
from vqtool.runtime.terminal import pluralize

# Levels in the figure of hits per code; its CSV file has all levels.
_MAX_LEVELS_DRAWN = 8
# Upper limit of the rows per level in the CSV file, exceeded if more codes have hits.
_MAX_CSV_CODES = 1 << 16
# With more codes, the map draws codes as pixels instead of vector shapes, which keeps the page small.
_MAX_CODES_AS_SHAPES = 600

Points = NDArray[np.float64]


def usage_figure(levels: Sequence[Usage]) -> Figure:
    """Draw the hits of the codes of each level, sorted in descending order."""
    drawn = levels[:_MAX_LEVELS_DRAWN]
    omitted = (
        f" The first {_MAX_LEVELS_DRAWN} of {len(levels)} levels are drawn; the CSV file has all of them."
        if drawn != levels
        else ""
    )
    rows = [
        (level, rank, int(code), usage.counts[code])
        for level, usage in enumerate(levels)
        for rank, code in enumerate(codes_by_hits(usage.counts)[: max(usage.used, _MAX_CSV_CODES)], 1)
    ]
    return Figure(
        name="usage",
        title="Hits per code",
        pictures=[_draw_usage(level, usage, len(levels) > 1) for level, usage in enumerate(drawn)],
        axes="Horizontal: codes, sorted by hits, most used first. Vertical: hits of a code, logarithmic.",
        interpretation="The dashed line is uniform usage. A curve close to it means that all codes are used about "
        "equally. A steep curve at the left means that few codes get most tokens. The red area marks dead codes (no "
        f"hits).{omitted}",
        data=Table(["level", "rank", "code", "hits"], rows),
    )


def codes_by_hits(counts: Sequence[int]) -> NDArray[np.int64]:
    """Return all codes (K,) in descending order of their hits `counts` (K,); the lower code comes first in ties."""
    return np.argsort(-np.asarray(counts, dtype=np.int64), kind="stable")


def _draw_usage(level: int, usage: Usage, several_levels: bool) -> Picture:
    label = f"hits per code, sorted: {usage.used:,} of {pluralize(usage.codebook_size, 'code')} used"
    with svg_drawing(f"usage-{level}", label) as drawing:
        ax, hits = drawing.ax, np.sort(np.asarray(usage.counts))[::-1]
        ax.fill_between(np.arange(usage.used) + 1, 0.5, hits[: usage.used], step="mid", color=BLUE, alpha=0.25, lw=0)
        ax.step(np.arange(usage.used) + 1, hits[: usage.used], where="mid", color=BLUE)
        uniform = usage.tokens / usage.codebook_size
        ax.axhline(uniform, color=GREY, ls="--", lw=1)
        ax.annotate(
            f"uniform: {uniform:,.0f}" if uniform >= 100 else f"uniform: {uniform:.3g}",
            (usage.codebook_size, uniform),  # at the right end, where the curve is below the line
            (-2, 3),
            textcoords="offset points",
            color=GREY,
            ha="right",
        )
        ax.set(yscale="log", ylim=(0.5, 2 * max(1, hits[0])), xlim=(0.5, usage.codebook_size + 0.5))
        ax.set(xlabel="rank of the code", ylabel="hits")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if hits[0] < 300 else (1,)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
        ax.yaxis.set_minor_formatter(NullFormatter())
        if usage.dead:
            ax.axvspan(usage.used + 0.5, usage.codebook_size + 0.5, color=RED, alpha=0.18, lw=0)
            right_aligned = usage.used > usage.codebook_size / 2
            ax.text(
                usage.codebook_size if right_aligned else usage.used + 0.02 * usage.codebook_size,
                1.5 * max(1, hits[0]),
                f"{usage.dead:,} dead",
                color=RED,
                ha="right" if right_aligned else "left",
                va="top",
            )
    return Picture(drawing.svg, f"level {level}" if several_levels else "")


@dataclass(frozen=True)
class PrincipalComponents:
    """Mean and directions of greatest variance of a set of vectors.

    Attributes:
        mean: (D,).
        directions: (D, C), orthonormal columns, greatest variance first; columns beyond D are zero.
        explained_variance_ratio: (C,), the fraction of the total variance along each direction.
    """

    mean: Points
    directions: Points
    explained_variance_ratio: Points

    def project(self, vectors: NDArray[np.float32]) -> Points:
        """Project vectors (n, D) to (n, C), float64: (vectors - mean) @ directions."""
        return (vectors.astype(np.float64) - self.mean) @ self.directions


def principal_components(vectors: NDArray[np.float32], components: int = 2) -> PrincipalComponents:
    """Return the first C = `components` principal components of vectors (S, D), from their covariance matrix.

    The sign of a direction is ambiguous; it is chosen so that the entry with the largest magnitude is positive.
    """
    values = vectors.astype(np.float64)
    mean = values.mean(axis=0)
    variances, eigenvectors = np.linalg.eigh(np.atleast_2d(np.cov((values - mean).T, bias=True)))
    order = np.argsort(-variances)[:components]
    directions = eigenvectors[:, order]
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    directions = directions * np.where(largest < 0, -1.0, 1.0)
    ratio = variances[order].clip(min=0) / max(variances.clip(min=0).sum(), 1e-300)
    padding = components - directions.shape[1]
    return PrincipalComponents(mean, np.pad(directions, ((0, 0), (0, padding))), np.pad(ratio, (0, padding)))


def codebook_map_figure(data_pass: DataPass, levels: list[Usage]) -> Figure | None:
    """Draw the codes of each level over the density of its latents; None if the codebook is too large to draw.

    Args:
        levels: usage of each level in the pass, `data_pass.counter.levels`.
    """
    if not data_pass.codebooks:
        return None
    pictures, rows = [], []
    for level, (codes, latents) in enumerate(zip(data_pass.codebooks, data_pass.latents, strict=True)):
        components = principal_components(latents)
        points, hits = components.project(codes), np.asarray(levels[level].counts)
        svg = _draw_map(level, components, points, components.project(latents), hits)
        pictures.append(Picture(svg, f"level {level}" if len(levels) > 1 else ""))
        rows += [(level, code, float(x), float(y), int(hits[code])) for code, (x, y) in enumerate(points)]
    return Figure(
        name="map",
        title="Codebook map",
        pictures=pictures,
        axes="Horizontal and vertical: the first two principal components of the latents, in the units of the latents. "
        "In parentheses: the fraction of the variance that each component explains.",
        interpretation="Discs are codes; a larger disc has more hits. The grey background is the density of the "
        "latents. Red crosses are dead codes. Codes should be where the latents are: a dead code far from the grey "
        "area cannot get hits. The map is a projection, so codes that overlap in it can be far apart in the other "
        "dimensions.",
        data=Table(["level", "code", "x", "y", "hits"], rows),
    )


def _draw_map(
    level: int, components: PrincipalComponents, codes: Points, latents: Points, hits: NDArray[np.int64]
) -> str:
    """Draw projected codes (K, 2), with their hits (K,), and latents (S, 2); return the SVG markup."""
    used = hits > 0
    as_pixels = len(hits) > _MAX_CODES_AS_SHAPES
    sizes = np.maximum(60 * hits[used] / max(1, hits.max()), 1.0 if as_pixels else 3.0)
    with svg_drawing(f"map-{level}", f"codebook map with {pluralize(len(hits), 'code')}", height=3.7) as drawing:
        ax = drawing.ax
        bins = {"gridsize": 45, "mincnt": 1, "cmap": DENSITY_CMAP, "norm": LogNorm(vmin=0.3), "linewidths": 0.1}
        ax.hexbin(latents[:, 0], latents[:, 1], rasterized=True, **bins)  # type: ignore[arg-type]
        ax.scatter(
            codes[~used, 0],
            codes[~used, 1],
            s=6 if as_pixels else 14,
            rasterized=as_pixels,
            marker="x",
            color=RED,
            lw=0.8,
            alpha=0.5 if as_pixels else 1,
        )
        ax.scatter(codes[used, 0], codes[used, 1], s=sizes, rasterized=as_pixels, color=BLUE, alpha=0.7, lw=0)
        first, second = components.explained_variance_ratio
        ax.set_xlabel(f"first component ({first:.0%})")
        ax.set_ylabel(f"second component ({second:.0%})")
        _set_limits(ax, np.concatenate([codes[used], latents]))
    return drawing.svg


def _set_limits(ax: Axes, points: Points) -> None:
    """Fit the axes to the points (n, 2). These exclude dead codes: a distant dead code would shrink the rest."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.08 * np.maximum(high - low, 1e-6)
    ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
    ax.set_ylim(low[1] - margin[1], high[1] + margin[1])
