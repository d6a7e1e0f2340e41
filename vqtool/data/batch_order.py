"""The order of training samples: a function of the seed, so a step number alone determines its batch."""

from functools import lru_cache

import numpy as np

from vqtool.data.rows import RowIndices


class BatchOrder:
    """Batches of sample indices: one random permutation per epoch, concatenated and cut into batches of B.

    Every batch is full. A batch may span two or more epochs, and then contain a sample more than once.

    Args:
        num_samples: number of training samples.
        batch_size: B, of all processes together.
        seed: of the permutations.

    Attributes:
        batch_size: B.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int) -> None:
        self._num_samples = num_samples
        self.batch_size = batch_size
        self._seed = seed

    def batch(self, step: int) -> RowIndices:
        """Return the sample indices (B,), each in 0..num_samples-1, of step `step`, counted from 0."""
        first, last = step * self.batch_size, (step + 1) * self.batch_size - 1
        pieces = []
        for epoch in range(first // self._num_samples, last // self._num_samples + 1):
            epoch_start = epoch * self._num_samples
            order = _permutation(self._num_samples, self._seed, epoch)
            pieces.append(order[max(first - epoch_start, 0) : last + 1 - epoch_start])
        return np.concatenate(pieces)


@lru_cache(maxsize=2)  # two epochs, because a batch can span the end of one and the start of the next
def _permutation(num_samples: int, seed: int, epoch: int) -> RowIndices:
    return np.random.default_rng([seed, 1, epoch]).permutation(num_samples)
