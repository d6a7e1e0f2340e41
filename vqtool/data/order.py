"""The order of samples: a function of seed and epoch alone, so that a step number says which samples it sees."""

from functools import lru_cache

import numpy as np

from vqtool.data.rows import RowIndices


def split(rows: int, validation: float, seed: int) -> tuple[RowIndices, RowIndices]:
    """Part row numbers 0..rows-1 at random into training and validation, both ascending, neither empty.

    Args:
        rows: at least 2.
        validation: the fraction that goes to validation.
    """
    held_out = min(max(1, round(rows * validation)), rows - 1)
    shuffled = np.random.default_rng([seed, 0]).permutation(rows)
    return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])


class BatchOrder:
    """Which samples make up each step's batch: epochs of fresh permutations, one after the other, cut into batches.

    Args:
        samples: number of training samples.
        batch_size: B; a batch may reach over the end of an epoch.

    Attributes:
        batch_size: B.
    """

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self._samples = samples
        self.batch_size = batch_size
        self._seed = seed

    def batch(self, step: int) -> RowIndices:
        """The sample numbers (B,) of a step, counted from 0."""
        first, last = step * self.batch_size, (step + 1) * self.batch_size - 1
        pieces = []
        for epoch in range(first // self._samples, last // self._samples + 1):
            start = epoch * self._samples
            order = _permutation(self._samples, self._seed, epoch)
            pieces.append(order[max(first - start, 0) : last + 1 - start])
        return np.concatenate(pieces)


@lru_cache(maxsize=2)
def _permutation(samples: int, seed: int, epoch: int) -> RowIndices:
    return np.random.default_rng([seed, 1, epoch]).permutation(samples)
