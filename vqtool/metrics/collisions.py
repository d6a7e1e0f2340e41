"""Semantic ids: the tuple of all codes of a sample, as the name of an item. Do two items share one?

Shapes: N rows, Q codes in a row.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.runtime.distributed import all_gather_rows, all_reduce_sum
from vqtool.runtime.progress import pass_bar

Ids = NDArray[Any]


@dataclass(frozen=True)
class IdCounts:
    """How many of the ids counted differ from each other."""

    rows: int
    ids: int

    @property
    def collision_rate(self) -> float:
        """1 - ids / rows: 0 where no two rows share an id."""
        return 1 - self.ids / self.rows


class IdCounter:
    """Counts distinct ids over a pass. It keeps each distinct id of the rows so far."""

    def __init__(self) -> None:
        self._rows = 0
        self._found: list[Ids] = []  # the first block is merged already, the others lie on top

    def add(self, ids: Ids) -> None:
        """Count in (n, ...) indices, a row an id."""
        self._rows += len(ids)
        self._found.append(np.unique(_keys(ids)))
        # Merged where the pile has doubled: each id is sorted a few times, however small the blocks.
        if sum(map(len, self._found[1:])) > len(self._found[0]):
            self._merge()

    def add_others(self) -> None:
        """Count in what all other processes have added, of ids as wide."""
        self._merge()
        found = self._found[0]
        numbers = found.view(np.uint8).reshape(len(found), found.dtype.itemsize)
        everywhere = all_gather_rows(torch.from_numpy(numbers)).numpy()
        self._found = [np.ascontiguousarray(everywhere).view(found.dtype)[:, 0]]
        self._rows = int(all_reduce_sum(torch.tensor(self._rows)))

    def result(self) -> IdCounts | None:
        """Over all that was added; None where nothing was."""
        if not self._found:
            return None
        self._merge()
        return IdCounts(self._rows, len(self._found[0]))

    def _merge(self) -> None:
        self._found = [np.unique(np.concatenate(self._found))]


def duplicate_numbers(ids: Ids, published: Ids | None = None) -> NDArray[np.int64]:
    """A number for each row that, with its id, makes it unique: 0, 1, ... among rows of one id, in their order.

    The extra token of generative retrieval (Rajput et al. 2023, "Recommender Systems with Generative Retrieval", 3.1).

    Args:
        ids: (N, Q).
        published: (M,) the numbers that the first M rows have already, which they keep; rows after them go on from
            the largest number of their id.

    Returns:
        (N,).
    """
    kept = np.zeros(0, dtype=np.int64) if published is None else published.astype(np.int64)
    with pass_bar("number ids", 3, "stages") as bar:
        group = np.unique(_keys(ids), return_inverse=True)[1]
        bar.update()
        first_free = np.zeros(group.max(initial=-1) + 1, dtype=np.int64)
        np.maximum.at(first_free, group[: len(kept)], kept + 1)
        fresh = group[len(kept) :]
        # Rows in order of their group, and within a group as they came: their rank is the distance to its first.
        order = np.argsort(fresh, kind="stable")
        bar.update()
        firsts = np.searchsorted(fresh[order], fresh[order])
        ranks = np.empty(len(fresh), dtype=np.int64)
        ranks[order] = np.arange(len(fresh)) - firsts
        bar.update()
    return np.concatenate([kept, first_free[fresh] + ranks])


def _keys(ids: Ids) -> Ids:
    """Rows as one value each, (N,), that can be sorted."""
    rows = np.ascontiguousarray(ids.reshape(len(ids), math.prod(ids.shape[1:])))
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
