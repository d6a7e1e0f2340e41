"""Collisions of semantic ids: the id of a row is the tuple of all its codes; rows that share an id collide.

Shapes: n or N rows, Q codes per row.
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
    """Number of rows, and of distinct ids among them."""

    rows: int
    ids: int

    @property
    def collision_rate(self) -> float:
        """1 - ids / rows; 0 if no two rows share an id."""
        return 1 - self.ids / self.rows


class IdCounter:
    """Counts distinct ids over rows that are added in batches. Each distinct id is kept in memory."""

    def __init__(self) -> None:
        self._rows = 0
        # Sorted distinct ids of each batch. The first array holds those of all merged batches.
        self._batches: list[NDArray[Any]] = []

    def add(self, ids: NDArray[Any]) -> None:
        """Add indices (n, ...); each row is one id."""
        self._rows += len(ids)
        self._batches.append(np.unique(row_keys(ids)))
        # Merging only when the size has doubled sorts each id O(log N) times, however small the batches are.
        if sum(map(len, self._batches[1:])) > len(self._batches[0]):
            self._merge()

    def all_reduce(self) -> None:
        """Add the rows of all other processes. All processes must call it, after at least one `add` each."""
        self._merge()
        keys = self._batches[0]
        key_bytes = keys.view(np.uint8).reshape(len(keys), keys.dtype.itemsize)
        gathered = all_gather_rows(torch.from_numpy(key_bytes)).numpy()
        self._batches = [np.ascontiguousarray(gathered).view(keys.dtype)[:, 0]]
        self._rows = int(all_reduce_sum(torch.tensor(self._rows)))

    def result(self) -> IdCounts | None:
        """Return the counts over all added rows; None if nothing was added."""
        if not self._batches:
            return None
        self._merge()
        return IdCounts(self._rows, len(self._batches[0]))

    def _merge(self) -> None:
        self._batches = [np.unique(np.concatenate(self._batches))]


def row_keys(ids: NDArray[Any]) -> NDArray[Any]:
    """Return each row of ids (N, ...) as one scalar (N,) of raw bytes; equal rows have equal keys."""
    rows = np.ascontiguousarray(ids.reshape(len(ids), math.prod(ids.shape[1:])))
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
