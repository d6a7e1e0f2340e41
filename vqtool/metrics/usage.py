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
        usage: used / K, 0 to 1.
        expected_used: expected number of used codes if each token had a uniformly random code; see `expected_used`.
        perplexity: effective number of codes, exp(entropy of the hits in nats); 1 to K, and 1 without hits.
        entropy_bits: entropy of the distribution of hits in bits, 0 to log2 K; 0 without hits.
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
        """Normalised entropy of the distribution of hits, in nats divided by ln K, from 0 to 1; 1 if K is 1."""
        return normalized_entropy(self.entropy_bits * math.log(2), self.codebook_size)


class CodeCounter:
    """Counts hits per code, and distinct ids, over indices that are added in batches.

    Args:
        codebook_sizes: K of each level.
        ids: whether to count distinct ids too; the id of a row is the tuple of all its indices.
    """

    def __init__(self, codebook_sizes: Sequence[int], ids: bool) -> None:
        self._counts = [np.zeros(size, dtype=np.int64) for size in codebook_sizes]
        self._ids = IdCounter() if ids else None

    def add(self, indices: NDArray[Any]) -> None:
        """Add integer indices (n, L); (n, L, Q) for a quantizer with levels. All must be at least 0.

        Raises:
            IndexError: an index is K or more. The counts are then incomplete.
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
        """Number of rows and of distinct ids added so far; None if ids are not counted or `add` was never called."""
        return self._ids.result() if self._ids else None


def usage_from_counts(counts: Tensor) -> Usage:
    """Return the usage of a codebook with these hits of each code: counts (K,), integers, K >= 1; all may be 0."""
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
    """Return -sum over k of p[k]·ln p[k] in nats, with p = weights / sum(weights).

    The weights (K,) must be at least 0; if all are 0, the entropy is 0.
    """
    weights = weights.double()
    total = weights.sum()
    if total == 0:
        return 0.0
    p = weights / total
    return max(0.0, -float((p * p.clamp_min(1e-300).log()).sum()))


def normalized_entropy(nats: float, codebook_size: int) -> float:
    """Return an entropy in nats divided by its maximum ln K: 0 to 1; 1 if K is 1."""
    return nats / math.log(codebook_size) if codebook_size > 1 else 1.0


def expected_used(codebook_size: int, tokens: int) -> float:
    """Return K (1 - (1 - 1/K)^tokens): the expected number of distinct codes in `tokens` uniform draws."""
    if codebook_size == 1:
        return float(tokens > 0)
    return -codebook_size * math.expm1(tokens * math.log1p(-1 / codebook_size))
