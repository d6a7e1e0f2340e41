"""Which code stands beside which, and what knowing the neighbour tells: what a prior over tokens could still gain.

Shapes: n of N rows, L positions per sample, K codes, Q levels, P pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Pairs kept, over all relations: 64 MiB. From more rows, every second, third, ... is looked at.
_MOST_PAIRS = 1 << 23
# Levels that are looked at.
_MOST_LEVELS = 4
# Codes whose pairs are told one by one.
_NAMED = 24

Indices = NDArray[Any]


@dataclass(frozen=True)
class Relation:
    """What the code at one place tells of the code at another.

    Attributes:
        level: of the code that is told about.
        neighbour: what the other place is.
        pairs: P.
        alone: entropy of the code, in bits.
        given: entropy of the code given its neighbour, as counted.
        by_chance: the same where codes are as frequent and neighbours are drawn by chance: with few pairs, low as well.
        codes, before: the most used ones (m) and their most used neighbours (m').
        surprise: (m', m), how much more often a pair was seen than by chance, in about its standard deviations.
    """

    level: int
    neighbour: str
    pairs: int
    alone: float
    given: float
    by_chance: float
    codes: NDArray[np.int64]
    before: NDArray[np.int64]
    surprise: NDArray[np.float64]

    @property
    def gain(self) -> float:
        """Bits a token that knowing the neighbour saves, beyond what any few pairs seem to save."""
        return max(0.0, self.by_chance - self.given)


class Pairs:
    """Gathers pairs of neighbouring codes, block by block, in memory that does not grow with the rows.

    Args:
        codebook_sizes: K of each level.
        grid: the row-major shape behind L.
        rows: N.
    """

    def __init__(self, codebook_sizes: Sequence[int], grid: Sequence[int], rows: int) -> None:
        self._sizes, self._grid = list(codebook_sizes), tuple(grid)
        self._kept: dict[tuple[int, str], list[tuple[Indices, Indices]]] = {}
        relations = min(len(self._sizes), _MOST_LEVELS) * 3
        self._step = max(1, math.ceil(rows * math.prod(self._grid) * relations / _MOST_PAIRS))

    def add(self, start: int, indices: Indices) -> None:
        """Look at (n, L), or (n, L, Q), the rows from number `start` on."""
        block = indices[-start % self._step :: self._step]
        block = block.reshape(len(block), *self._grid, len(self._sizes))
        for level in range(min(len(self._sizes), _MOST_LEVELS)):
            codes = block[..., level]
            if self._grid[-1] > 1:
                name = "the previous code" if len(self._grid) == 1 else "the code to the left"
                self._keep(level, name, codes[..., :-1], codes[..., 1:])
            if len(self._grid) == 2 and self._grid[0] > 1:
                self._keep(level, "the code above", codes[:, :-1], codes[:, 1:])
            if level:
                self._keep(level, f"the code at level {level - 1}", block[..., level - 1], codes)

    def result(self) -> list[Relation]:
        """What was found, level by level."""
        return [
            _relation(level, name, *(np.concatenate(side) for side in zip(*kept, strict=True)))
            for (level, name), kept in self._kept.items()
        ]

    def _keep(self, level: int, name: str, before: Indices, after: Indices) -> None:
        if before.size:
            pair = (before.reshape(-1).astype(np.uint32), after.reshape(-1).astype(np.uint32))
            self._kept.setdefault((level, name), []).append(pair)


def entropy_bits(values: Indices) -> float:
    """The entropy of values (P,), as counted, in bits."""
    counts = np.unique(values, return_counts=True)[1]
    p = counts / counts.sum()
    return max(0.0, -float((p * np.log2(p)).sum()))


def conditional_entropy_bits(values: Indices, known: Indices) -> float:
    """The entropy of values (P,) given what is known (P,) of each, as counted, in bits."""
    joint = (known.astype(np.uint64) << np.uint64(32)) | values.astype(np.uint64)
    return max(0.0, entropy_bits(joint) - entropy_bits(known))


def _relation(level: int, name: str, before: Indices, after: Indices) -> Relation:
    shuffled = np.random.default_rng(0).permutation(before)
    codes, others = _most_used(after), _most_used(before)
    return Relation(
        level=level,
        neighbour=name,
        pairs=len(after),
        alone=entropy_bits(after),
        given=conditional_entropy_bits(after, before),
        by_chance=conditional_entropy_bits(after, shuffled),
        codes=codes,
        before=others,
        surprise=_surprise(before, after, others, codes),
    )


def _most_used(codes: Indices) -> NDArray[np.int64]:
    values, counts = np.unique(codes, return_counts=True)
    return np.sort(values[np.lexsort((values, -counts))[:_NAMED]].astype(np.int64))


def _surprise(before: Indices, after: Indices, others: Indices, codes: Indices) -> NDArray[np.float64]:
    rows, columns = np.searchsorted(others, before), np.searchsorted(codes, after)
    rows, columns = rows.clip(max=len(others) - 1), columns.clip(max=len(codes) - 1)
    of_row, of_column = others[rows] == before, codes[columns] == after
    seen = np.zeros((len(others), len(codes)))
    np.add.at(seen, (rows[of_row & of_column], columns[of_row & of_column]), 1)
    row_hits = np.bincount(rows[of_row], minlength=len(others))
    column_hits = np.bincount(columns[of_column], minlength=len(codes))
    expected = np.outer(row_hits, column_hits) / len(after)
    # One more, so that a pair that is not expected at all says little where it is seen once.
    surprise: NDArray[np.float64] = (seen - expected) / np.sqrt(expected + 1)
    return surprise
