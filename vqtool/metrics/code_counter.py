"""Count the hits of each code, and distinct ids.

Shapes: n rows, L tokens per sample, K codes, Q levels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.metrics.collisions import IdCounter, IdCounts
from vqtool.metrics.usage import Usage, usage_from_counts


class CodeCounter:
    """Counter of indices, added in blocks.

    Args:
        codebook_sizes: K of each level.
        ids: whether to count distinct rows too.
    """

    def __init__(self, codebook_sizes: Sequence[int], ids: bool) -> None:
        self._hits = [np.zeros(size, dtype=np.int64) for size in codebook_sizes]
        self._ids = IdCounter() if ids else None

    def add(self, indices: NDArray[Any]) -> None:
        """Add indices (n, L), or (n, L, Q).

        Raises:
            IndexError: an index is out of range for its codebook.
        """
        for hits, level in zip(self._hits, indices.reshape(-1, len(self._hits)).T, strict=True):
            if level.size and int(level.max()) >= len(hits):
                raise IndexError(f"index {level.max()}, but valid indices are 0 to {len(hits) - 1}")
            hits += np.bincount(level, minlength=len(hits))
        if self._ids:
            self._ids.add(indices)

    @property
    def levels(self) -> list[Usage]:
        """Usage of each level."""
        return [usage_from_counts(torch.from_numpy(hits)) for hits in self._hits]

    @property
    def distinct(self) -> IdCounts | None:
        """Distinct ids, if they are counted."""
        return self._ids.result() if self._ids else None
