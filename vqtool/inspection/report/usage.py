"""Usage by rank: how evenly codes are hit, and which never are.

Shapes: K codes.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from vqtool.inspection.report.drawing import ACCENT, DEAD, QUIET, drawing
from vqtool.inspection.report.figure import Figure, Picture, Table
from vqtool.inspection.words import counted
from vqtool.metrics.usage import Usage

# Levels drawn; the numbers hold all.
_MOST_DRAWN = 8


def usage_figure(levels: Sequence[Usage]) -> Figure:
    """Hits of the codes of each level, the most used one first."""
    drawn = levels[:_MOST_DRAWN]
    more = (
        f" The first {_MOST_DRAWN} of {len(levels)} levels are drawn; the CSV file has all of them."
        if drawn != levels
        else ""
    )
    return Figure(
        name="usage",
        title="Hits per code",
        pictures=[_picture(number, usage, len(levels) > 1) for number, usage in enumerate(drawn)],
        axes="Horizontal: codes, sorted by hits, most used first. Vertical: hits of a code, logarithmic.",
        meaning="The dashed line is uniform usage. A curve close to it means that all codes are used about equally. A "
        f"steep curve at the left means that few codes get most tokens. The red area marks dead codes (no hits).{more}",
        numbers=Table(
            ["level", "rank", "code", "hits"], [row for n, usage in enumerate(levels) for row in _rows(n, usage)]
        ),
    )


def ranked(counts: Sequence[int]) -> NDArray[np.int64]:
    """Codes (K,), the most used one first; among equals, the lower number."""
    return np.argsort(-np.asarray(counts, dtype=np.int64), kind="stable")


def _rows(level: int, usage: Usage) -> list[tuple[int, int, int, int]]:
    order = ranked(usage.counts)[: max(usage.used, 1 << 16)]  # of a huge codebook, those with hits are enough
    return [(level, rank + 1, int(code), usage.counts[code]) for rank, code in enumerate(order)]


def _picture(number: int, usage: Usage, several: bool) -> Picture:
    title = f"level {number}" if several else ""
    label = f"hits per code, sorted: {usage.used:,} of {counted(usage.codebook_size, 'code')} used"
    with drawing(f"usage-{number}", label) as made:
        ax, hits = made.ax, np.sort(np.asarray(usage.counts))[::-1]
        ax.fill_between(np.arange(usage.used) + 1, 0.5, hits[: usage.used], step="mid", color=ACCENT, alpha=0.25, lw=0)
        ax.step(np.arange(usage.used) + 1, hits[: usage.used], where="mid", color=ACCENT)
        even = usage.tokens / usage.codebook_size
        ax.axhline(even, color=QUIET, ls="--", lw=1)
        right = (usage.codebook_size, even)  # where codes have less than their share, there is room above the line
        ax.annotate(
            f"uniform: {even:,.0f}" if even >= 100 else f"uniform: {even:.3g}",
            right,
            (-2, 3),
            textcoords="offset points",
            color=QUIET,
            ha="right",
        )
        ax.set(yscale="log", ylim=(0.5, 2 * max(1, hits[0])), xlim=(0.5, usage.codebook_size + 0.5))
        ax.set(xlabel="rank of the code", ylabel="hits")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if hits[0] < 300 else (1,)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
        ax.yaxis.set_minor_formatter(NullFormatter())
        if usage.dead:
            ax.axvspan(usage.used + 0.5, usage.codebook_size + 0.5, color=DEAD, alpha=0.18, lw=0)
            at_right = usage.used > usage.codebook_size / 2
            ax.text(
                usage.codebook_size if at_right else usage.used + 0.02 * usage.codebook_size,
                1.5 * max(1, hits[0]),
                f"{usage.dead:,} dead",
                color=DEAD,
                ha="right" if at_right else "left",
                va="top",
            )
    return Picture(made.svg, title)
