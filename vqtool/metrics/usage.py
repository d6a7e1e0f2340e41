"""From the hits of each code to what they say of a codebook. The one place where it is computed."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Usage:
    """How a codebook is used over a whole pass.

    Attributes:
        codebook_size: K.
        used: codes with at least one hit.
        usage: used / K.
        expected_used: how many codes even use would have reached with as many tokens.
        perplexity: exp of the entropy: the number of codes that, used evenly, would have the same entropy.
        entropy_bits: entropy of the hard counts, in bits.
        dead: K - used.
        counts: hits of each code (K).
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
        """Hits in all."""
        return sum(self.counts)

    @property
    def entropy(self) -> float:
        """Entropy of the hard counts over ln K, 0 to 1; 1 for a single code, which is used as evenly as it can be."""
        return normalized_entropy(self.entropy_bits * math.log(2), self.codebook_size)


def usage_from_counts(counts: Tensor) -> Usage:
    """The usage of a codebook whose codes were hit so often, counts (K,) of an integer type."""
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
    """The entropy, in nats, of weights (K,) that need not add up to one; 0 where all are zero."""
    weights = weights.double()
    total = weights.sum()
    if total == 0:
        return 0.0
    p = weights / total
    return max(0.0, -float((p * p.clamp_min(1e-300).log()).sum()))


def normalized_entropy(nats: float, codebook_size: int) -> float:
    """An entropy over its largest value, ln K."""
    return nats / math.log(codebook_size) if codebook_size > 1 else 1.0


def expected_used(codebook_size: int, tokens: int) -> float:
    """K (1 - (1 - 1/K)^tokens): the mean number of distinct codes in as many even draws."""
    if codebook_size == 1:
        return float(tokens > 0)
    return -codebook_size * math.expm1(tokens * math.log1p(-1 / codebook_size))
