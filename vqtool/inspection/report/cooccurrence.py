"""Co-occurrence of neighbouring codes: an estimate of the bits per token that a prior over tokens can save.

X is the code of a token and Y the code of its neighbour: the previous token, the token to the left or above, or the
previous level of the same token.

Shapes: n of N rows, L tokens per row, K codes, Q levels, P pairs (y, x), m and m' codes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.inspection.report.figure import BLUE, DIVERGING_CMAP, GREY, ORANGE, Figure, Picture, Table, svg_drawing
from vqtool.metrics.usage import Usage
from vqtool.runtime.terminal import pluralize

# Pairs kept in memory, over all neighbours and levels: 64 MiB.
_MAX_PAIRS = 1 << 23
_MAX_LEVELS = 4
# Codes per axis of a matrix of pairs (`pearson_residuals`).
_MAX_MATRIX_CODES = 24
_MAX_MATRICES_DRAWN = 4
# With fewer pairs per used code, the figure says that the estimate is not reliable.
_MIN_PAIRS_PER_CODE = 20

Indices = NDArray[Any]


@dataclass(frozen=True)
class Cooccurrence:
    """Statistics of the pairs (Y, X) of one level and one kind of neighbour. All entropies are in bits.

    Attributes:
        level: level of X.
        neighbour: name of Y, such as "the previous code".
        pairs: P.
        entropy: H(X).
        conditional_entropy: H(X|Y). With few pairs, this estimate is too small.
        shuffled_conditional_entropy: H(X|Y'), where Y' is a random permutation of the values of Y. X and Y' are
            independent, so it would be H(X), except that with few pairs it is too small as well.
        codes, neighbour_codes: the most used values of X (m,) and of Y (m',), in ascending order.
        pearson_residuals: (m', m), (O - E) / sqrt(E + 1), roughly in standard deviations. O[j, i] is the number of
            pairs with Y = neighbour_codes[j] and X = codes[i]. E[j, i] = count(Y = neighbour_codes[j])·count(X =
            codes[i]) / P is its expectation for independent X and Y.
    """

    level: int
    neighbour: str
    pairs: int
    entropy: float
    conditional_entropy: float
    shuffled_conditional_entropy: float
    codes: NDArray[np.int64]
    neighbour_codes: NDArray[np.int64]
    pearson_residuals: NDArray[np.float64]

    @property
    def mutual_information(self) -> float:
        """Estimate of I(X;Y) in bits, max(0, H(X|Y') - H(X|Y)); with few pairs, H(X) - H(X|Y) would be too large."""
        return max(0.0, self.shuffled_conditional_entropy - self.conditional_entropy)


class CooccurrenceCollector:
    """Collects pairs of neighbouring codes in the first 4 levels, block by block, in memory that is independent of N.

    Args:
        codebook_sizes: K of each level.
        grid: the token grid, of one or two dimensions with product L, in row-major order.
        rows: N.
        max_pairs: approximate limit of the pairs over all levels and neighbours. Only every k-th row is used, with
            k = ceil(N · L · 3·min(Q, 4) / max_pairs), because a token has at most 3 neighbours per level.
    """

    def __init__(
        self, codebook_sizes: Sequence[int], grid: Sequence[int], rows: int, max_pairs: int = _MAX_PAIRS
    ) -> None:
        self._num_levels, self._grid = len(codebook_sizes), tuple(grid)
        self._pairs: dict[tuple[int, str], list[tuple[Indices, Indices]]] = {}
        neighbours = min(self._num_levels, _MAX_LEVELS) * 3  # left, above and previous level
        self._row_step = max(1, math.ceil(rows * math.prod(self._grid) * neighbours / max_pairs))

    def add(self, start: int, indices: Indices) -> None:
        """Add indices (n, L) or (n, L, Q) of the rows from number `start` on."""
        block = indices[-start % self._row_step :: self._row_step]
        block = block.reshape(len(block), *self._grid, self._num_levels)
        for level in range(min(self._num_levels, _MAX_LEVELS)):
            codes = block[..., level]
            if self._grid[-1] > 1:
                neighbour = "the previous code" if len(self._grid) == 1 else "the code to the left"
                self._add_pairs(level, neighbour, codes[..., :-1], codes[..., 1:])
            if len(self._grid) == 2 and self._grid[0] > 1:
                self._add_pairs(level, "the code above", codes[:, :-1], codes[:, 1:])
            if level:
                self._add_pairs(level, f"the code at level {level - 1}", block[..., level - 1], codes)

    def result(self, max_codes: int = _MAX_MATRIX_CODES) -> list[Cooccurrence]:
        """Return the statistics of each level and neighbour, in order of levels.

        Args:
            max_codes: upper limit of m and m'.
        """
        result = []
        for (level, neighbour), blocks in self._pairs.items():
            y, x = (np.concatenate(side) for side in zip(*blocks, strict=True))
            result.append(_cooccurrence(level, neighbour, y, x, max_codes))
        return result

    def _add_pairs(self, level: int, neighbour: str, y: Indices, x: Indices) -> None:
        if y.size:
            pair = (y.reshape(-1).astype(np.uint32), x.reshape(-1).astype(np.uint32))
            self._pairs.setdefault((level, neighbour), []).append(pair)


def entropy_bits(x: Indices) -> float:
    """Return H(X) = -sum over x of p(x)·log2 p(x) of values (P,), in bits, with p(x) = count(x) / P."""
    counts = np.unique(x, return_counts=True)[1]
    p = counts / counts.sum()
    return max(0.0, -float((p * np.log2(p)).sum()))


def conditional_entropy_bits(x: Indices, y: Indices) -> float:
    """Return H(X|Y) = H(X,Y) - H(Y) of pairs of uint32 values x (P,) and y (P,), in bits, from their counts."""
    joint = (y.astype(np.uint64) << np.uint64(32)) | x.astype(np.uint64)
    return max(0.0, entropy_bits(joint) - entropy_bits(y))


def _cooccurrence(level: int, neighbour: str, y: Indices, x: Indices, max_codes: int) -> Cooccurrence:
    shuffled = np.random.default_rng(0).permutation(y)
    codes, neighbour_codes = _most_used(x, max_codes), _most_used(y, max_codes)
    return Cooccurrence(
        level=level,
        neighbour=neighbour,
        pairs=len(x),
        entropy=entropy_bits(x),
        conditional_entropy=conditional_entropy_bits(x, y),
        shuffled_conditional_entropy=conditional_entropy_bits(x, shuffled),
        codes=codes,
        neighbour_codes=neighbour_codes,
        pearson_residuals=_pearson_residuals(y, x, neighbour_codes, codes),
    )


def _most_used(indices: Indices, max_codes: int) -> NDArray[np.int64]:
    """Return the `max_codes` codes with most hits, or all, sorted by code number; the lower code wins ties."""
    codes, hits = np.unique(indices, return_counts=True)
    return np.sort(codes[np.lexsort((codes, -hits))[:max_codes]].astype(np.int64))


def _pearson_residuals(y: Indices, x: Indices, neighbour_codes: Indices, codes: Indices) -> NDArray[np.float64]:
    """Return `Cooccurrence.pearson_residuals` (m', m) of pairs y (P,), x (P,) for sorted codes (m',) and (m,)."""
    rows, columns = np.searchsorted(neighbour_codes, y), np.searchsorted(codes, x)
    rows, columns = rows.clip(max=len(neighbour_codes) - 1), columns.clip(max=len(codes) - 1)
    in_rows, in_columns = neighbour_codes[rows] == y, codes[columns] == x
    observed = np.zeros((len(neighbour_codes), len(codes)))
    np.add.at(observed, (rows[in_rows & in_columns], columns[in_rows & in_columns]), 1)
    row_hits = np.bincount(rows[in_rows], minlength=len(neighbour_codes))
    column_hits = np.bincount(columns[in_columns], minlength=len(codes))
    expected = np.outer(row_hits, column_hits) / len(x)
    # The usual denominator is sqrt(E); with it, a single pair with E near 0 would dominate the colour scale.
    pearson_residuals: NDArray[np.float64] = (observed - expected) / np.sqrt(expected + 1)
    return pearson_residuals


def cooccurrence_figure(cooccurrences: Sequence[Cooccurrence], levels: Sequence[Usage]) -> Figure | None:
    """Draw bits per token with and without each neighbour, and matrices of frequent pairs.

    None without co-occurrences: tokens then have no neighbours.

    Args:
        levels: usage of each level.
    """
    if not cooccurrences:
        return None
    return Figure(
        name="cooccurrence",
        title="Neighbouring codes",
        pictures=[
            _draw_bits(cooccurrences, levels),
            *(_draw_pair_matrix(i, item) for i, item in enumerate(cooccurrences[:_MAX_MATRICES_DRAWN])),
        ],
        axes="Bars: bits per token. Squares: pairs of the most used codes, horizontal the code, vertical its "
        "neighbour. Blue pairs are more frequent than by chance, red pairs less frequent; the scale is in approximate "
        "standard deviations.",
        interpretation=_interpretation(cooccurrences, levels),
        data=Table(
            ["level", "neighbour", "pairs", "entropy", "given neighbour", "given shuffled neighbour", "bits saved"],
            [
                (
                    item.level,
                    item.neighbour,
                    item.pairs,
                    item.entropy,
                    item.conditional_entropy,
                    item.shuffled_conditional_entropy,
                    item.mutual_information,
                )
                for item in cooccurrences
            ],
        ),
        show_data=True,
    )


def _interpretation(cooccurrences: Sequence[Cooccurrence], levels: Sequence[Usage]) -> str:
    best = max(cooccurrences, key=lambda item: item.mutual_information)
    fewest_pairs = min(item.pairs for item in cooccurrences)
    at_level = f" at level {best.level}" if len(levels) > 1 else ""
    used = levels[best.level].used
    warning = f" {pluralize(fewest_pairs, 'pair')} for {pluralize(used, 'code')} are too few for a reliable estimate."
    return (
        f"A prior over tokens that conditions on {best.neighbour} can save {best.mutual_information:.2f} of "
        f"{best.entropy:.2f} bits per token{at_level}; a prior with more context can save more. Bits saved: entropy "
        "given a shuffled neighbour, minus entropy given the real one. Subtracting from the shuffled value removes the "
        f"bias of small counts.{warning if fewest_pairs < _MIN_PAIRS_PER_CODE * used else ''}"
    )


def _draw_bits(cooccurrences: Sequence[Cooccurrence], levels: Sequence[Usage]) -> Picture:
    """Draw log2 K, H(X), and H(X) - I(X;Y) of each neighbour, for every level that has neighbours."""
    names, bits, colours = [], [], []
    for level in sorted({item.level for item in cooccurrences}):
        prefix = f"level {level}: " if len(levels) > 1 else ""
        of_level = [item for item in cooccurrences if item.level == level]
        names += [f"{prefix}log2 K", f"{prefix}entropy", *(f"{prefix}given {item.neighbour}" for item in of_level)]
        entropy = levels[level].entropy_bits
        bits += [math.log2(levels[level].codebook_size), entropy]
        bits += [max(0.0, entropy - item.mutual_information) for item in of_level]
        colours += [GREY, BLUE, *[ORANGE] * len(of_level)]
    with svg_drawing("bits", "bits per token", height=0.7 + 0.27 * len(names)) as drawing:
        y = np.arange(len(names))
        drawing.ax.barh(y, bits, color=colours, height=0.7)
        drawing.ax.set_yticks(y, names)
        drawing.ax.invert_yaxis()
        drawing.ax.set(xlabel="bits per token", xlim=(0, 1.15 * max(bits)))
        for bar, value in enumerate(bits):
            drawing.ax.text(value, bar, f" {value:.2f}", va="center")
    return Picture(drawing.svg, "bits per token")


def _draw_pair_matrix(number: int, item: Cooccurrence) -> Picture:
    with svg_drawing(f"pairs-{number}", "pairs of codes", height=3.7) as drawing:
        limit = float(np.abs(item.pearson_residuals).max().clip(3, 20))
        image = drawing.ax.imshow(
            item.pearson_residuals,
            cmap=DIVERGING_CMAP,
            vmin=-limit,
            vmax=limit,
            origin="lower",
            interpolation="nearest",
        )
        for axis, codes in ((drawing.ax.xaxis, item.codes), (drawing.ax.yaxis, item.neighbour_codes)):
            ticks = np.arange(0, len(codes), max(1, len(codes) // 8))
            axis.set_ticks(ticks, [str(codes[tick]) for tick in ticks])
        drawing.ax.set(xlabel="code", ylabel=item.neighbour)
        drawing.add_colorbar(image, "deviation from chance (standard deviations)")
    title = f"code{f' at level {item.level}' if item.level else ''} and {item.neighbour}"
    return Picture(drawing.svg, title)
