"""The order of training samples: a function of seed and epoch, so a step number alone determines its batch."""

from functools import lru_cache

import numpy as np

from vqtool.data.rows import RowIndices


class BatchOrder:
    """Sample indices of each step's batch: one random permutation per epoch, concatenated and cut into batches.

    Args:
        num_samples: number of training samples.
        batch_size: B. Every batch is full: it continues into the next epoch if needed.
        seed: of the permutations.

    Attributes:
        batch_size: B.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int) -> None:
        self._num_samples = num_samples
        self.batch_size = batch_size
        self._seed = seed

    def batch(self, step: int) -> RowIndices:
        """Return the sample indices (B,) of a step, counted from 0."""
        first, last = step * self.batch_size, (step + 1) * self.batch_size - 1
        pieces = []
        for epoch in range(first // self._num_samples, last // self._num_samples + 1):
            epoch_start = epoch * self._num_samples
            order = _permutation(self._num_samples, self._seed, epoch)
            pieces.append(order[max(first - epoch_start, 0) : last + 1 - epoch_start])
        return np.concatenate(pieces)


@lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> RowIndices:
    return np.random.default_rng([seed, 1, epoch]).permutation(num_samples)
