"""Collisions of semantic ids: the id of a row is the tuple of all its indices; rows that share an id collide.

Shapes: n rows, L tokens per row, Q levels; (n, ...) is (n, L) or (n, L, Q).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.runtime.distributed import all_gather_rows, all_reduce_sum


@dataclass(frozen=True)
class IdCounts:
    """Number of rows, and number of distinct ids among them (at most `rows`)."""

    rows: int
    ids: int

    @property
    def collision_rate(self) -> float:
        """1 - ids / rows: the fraction of rows whose id an earlier row has, from 0 to below 1; rows must not be 0."""
        return 1 - self.ids / self.rows


class IdCounter:
    """Counts distinct ids over rows that are added in batches. Memory grows with the number of distinct ids."""

    def __init__(self) -> None:
        self._rows = 0
        # Sorted distinct ids of each batch. The first array holds those of all merged batches.
        self._batches: list[NDArray[Any]] = []

    def add(self, ids: NDArray[Any]) -> None:
        """Add indices (n, ...); each row is one id. Dtype and shape after the first axis must be equal in all calls."""
        self._rows += len(ids)
        self._batches.append(np.unique(row_keys(ids)))
        # Merging only when the size has doubled sorts each id O(log N) times, however small the batches are.
        if sum(map(len, self._batches[1:])) > len(self._batches[0]):
            self._merge()

    def all_reduce(self) -> None:
        """Add the rows of all other processes, once, at the end of the pass.

        All processes must call it, after at least one `add` each; a process without rows adds (0, ...).
        """
        self._merge()
        keys = self._batches[0]
        key_bytes = keys.view(np.uint8).reshape(len(keys), keys.dtype.itemsize)
        gathered = all_gather_rows(torch.from_numpy(key_bytes)).numpy()
        self._batches = [np.ascontiguousarray(gathered).view(keys.dtype)[:, 0]]
        self._rows = int(all_reduce_sum(torch.tensor(self._rows)))

    def result(self) -> IdCounts | None:
        """Return the counts over all added rows; None if `add` was never called."""
        if not self._batches:
            return None
        self._merge()
        return IdCounts(self._rows, len(self._batches[0]))

    def _merge(self) -> None:
        self._batches = [np.unique(np.concatenate(self._batches))]


def row_keys(ids: NDArray[Any]) -> NDArray[Any]:
    """Return one key per row of ids (n, ...): (n,) of a void dtype, the bytes of the row; equal only for equal rows."""
    rows = np.ascontiguousarray(ids.reshape(len(ids), math.prod(ids.shape[1:])))
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
