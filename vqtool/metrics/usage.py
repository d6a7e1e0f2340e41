"""Codebook usage: count the hits of each code, and compute usage, perplexity and entropy from the counts.

Shapes: n rows, L tokens per sample, K codes, Q levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.metrics.collisions import IdCounter, IdCounts


@dataclass(frozen=True)
class Usage:
    """Usage of a codebook over a whole pass.

    Attributes:
        codebook_size: K.
        used: number of codes with at least one hit.
        usage: used / K.
        expected_used: number of codes that uniform usage would hit with as many tokens, K (1 - (1 - 1/K)^tokens).
        perplexity: effective number of codes, exp(entropy).
        entropy_bits: entropy of the distribution of hits, in bits.
        dead: number of codes without a hit, K - used.
        counts: hits of each code, K numbers.
    """

    codebook_size: int
    used: int
    usage: float
    expected_used: float
    perplexity: float
    entropy_bits: float
    dead: int
    counts: list[int]

    @property
    def tokens(self) -> int:
        """Sum of all counts."""
        return sum(self.counts)

    @property
    def entropy(self) -> float:
        """Entropy of the distribution of hits divided by ln K, from 0 to 1; 1 if K is 1."""
        return normalized_entropy(self.entropy_bits * math.log(2), self.codebook_size)


class CodeCounter:
    """Counts hits per code, and distinct ids, over indices that are added in batches.

    Args:
        codebook_sizes: K of each level.
        ids: whether to count distinct ids too; an id is all indices of a row.
    """

    def __init__(self, codebook_sizes: Sequence[int], ids: bool) -> None:
        self._counts = [np.zeros(size, dtype=np.int64) for size in codebook_sizes]
        self._ids = IdCounter() if ids else None

    def add(self, indices: NDArray[Any]) -> None:
        """Add indices (n, L); (n, L, Q) for several levels.

        Raises:
            IndexError: an index is out of range for its codebook.
        """
        for counts, level in zip(self._counts, indices.reshape(-1, len(self._counts)).T, strict=True):
            if level.size and int(level.max()) >= len(counts):
                raise IndexError(f"index {level.max()}, but valid indices are 0 to {len(counts) - 1}")
            counts += np.bincount(level, minlength=len(counts))
        if self._ids:
            self._ids.add(indices)

    @property
    def levels(self) -> list[Usage]:
        """Usage of each level over the indices added so far."""
        return [usage_from_counts(torch.from_numpy(counts)) for counts in self._counts]

    @property
    def distinct(self) -> IdCounts | None:
        """Number of rows and of distinct ids added so far; None if ids are not counted or nothing was added."""
        return self._ids.result() if self._ids else None


def usage_from_counts(counts: Tensor) -> Usage:
    """Return the usage of a codebook for the hits of each code: counts (K,), integers."""
    size, used = len(counts), int((counts > 0).sum())
    entropy = shannon_entropy(counts)
    return Usage(
        codebook_size=size,
        used=used,
        usage=used / size,
        expected_used=expected_used(size, int(counts.sum())),
        perplexity=math.exp(entropy),
        entropy_bits=entropy / math.log(2),
        dead=size - used,
        counts=counts.tolist(),
    )


def shannon_entropy(weights: Tensor) -> float:
    """Return -sum over k of p[k]·ln p[k] in nats, with p = weights / sum(weights); 0 if all weights (K,) are 0."""
    weights = weights.double()
    total = weights.sum()
    if total == 0:
        return 0.0
    p = weights / total
    return max(0.0, -float((p * p.clamp_min(1e-300).log()).sum()))


def normalized_entropy(nats: float, codebook_size: int) -> float:
    """Return an entropy in nats divided by ln K, its largest value; 1 if K is 1."""
    return nats / math.log(codebook_size) if codebook_size > 1 else 1.0


def expected_used(codebook_size: int, tokens: int) -> float:
    """Return K (1 - (1 - 1/K)^tokens): the expected number of distinct codes in `tokens` uniform draws."""
    if codebook_size == 1:
        return float(tokens > 0)
    return -codebook_size * math.expm1(tokens * math.log1p(-1 / codebook_size))
