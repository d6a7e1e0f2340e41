"""Explanations of usage and perplexity in plain words: is this perplexity good?

Shapes: K codes.
"""

import math
from collections.abc import Sequence

import numpy as np

from vqtool.inspection.words import counted, listed, short
from vqtool.metrics.usage import Usage

# The usual range of trained codebooks, as fractions of the perplexity of uniform usage.
_LOW, _HIGH = 0.5, 0.9
# Hits a code from which on the series in 1 / hits is exact enough.
_MANY = 50.0

_KINDS = {
    "images": "Images contain many similar plain areas, so a few codes with far more hits than the mean are normal.",
    "grids": "Tile maps repeat a small number of patterns, so a lower perplexity than for other data is normal.",
    "sequences": "Sequences contain silence and constant segments, so a few codes with far more hits than the mean are "
    "normal.",
    "vectors": "Vectors rarely repeat, so usage close to uniform is best: it distinguishes the most samples.",
}


def expected_perplexity(codebook_size: int, tokens: int) -> float:
    """The mean perplexity of uniform usage of K codes over this number of tokens; with few tokens it is far below K."""
    if tokens <= 0:
        return 1.0
    mean = tokens / codebook_size
    if mean > _MANY:  # Miller 1955, "Note on the bias of information estimates"
        return codebook_size * math.exp(-(codebook_size - 1) / (2 * tokens))
    hits = np.arange(1, int(mean + 20 * math.sqrt(mean)) + 30)
    # A code's hits are close to a Poisson count; of a single token, one code has it for sure.
    chance = np.exp(hits * math.log(mean) - mean - np.cumsum(np.log(hits)))
    nats = math.log(tokens) - float((chance * hits * np.log(hits)).sum()) / mean
    return math.exp(min(max(nats, 0.0), math.log(min(tokens, codebook_size))))


def explain(levels: Sequence[Usage], kind: str | None = None, batch_tokens: int | None = None) -> list[str]:
    """Sentences on the perplexity, its usual range, and why the perplexity of a batch is misleading.

    Args:
        levels: the first is explained in full; the others are placed in the same range.
        kind: of the data: images, grids, sequences or vectors.
        batch_tokens: of a training batch.
    """
    first, *others = levels
    return [*_explain(first, kind, batch_tokens, 0 if others else None), *_judged(others)]


def _explain(usage: Usage, kind: str | None, batch_tokens: int | None, level: int | None) -> list[str]:
    if not usage.tokens:
        return ["No tokens were counted, so usage and perplexity are undefined."]
    if usage.codebook_size == 1:
        of = "" if level is None else f" of level {level}"
        return [f"The codebook{of} has a single code, so every token is the same: 0 bits per token."]
    if usage.tokens == 1:
        return ["Only one token was counted. Count more data to measure usage and perplexity."]
    sentences = [_perplexity(usage, level), _normal(usage)]
    if kind in _KINDS:
        sentences.append(_KINDS[kind])
    return [*sentences, _batch(usage, batch_tokens)]


def too_young(step: int) -> str:
    """Why a run that has not reached this step has almost no findings."""
    return f"Before step {step:,}, only codebook_too_large is reported: other problems can still disappear in training."


def healthy_range(usage: Usage) -> tuple[float, float]:
    """The usual range of the perplexity of trained codebooks, for this K and this number of tokens."""
    reach = expected_perplexity(usage.codebook_size, usage.tokens)
    return max(1.0, _LOW * reach), max(1.0, _HIGH * reach)


def _perplexity(usage: Usage, level: int | None) -> str:
    of = "" if level is None else f" of level {level}"
    return (
        f"The perplexity{of} is {usage.perplexity:,.1f} of K = {usage.codebook_size:,}: {usage.entropy_bits:.2f} bits "
        f"per token, as many as {usage.perplexity:,.1f} uniformly used codes would have."
    )


def _normal(usage: Usage) -> str:
    size, (low, high) = usage.codebook_size, healthy_range(usage)
    reach = expected_perplexity(size, usage.tokens)
    few = f"{counted(usage.tokens, 'token')} are few for {size:,} codes: count more data before you judge dead codes. "
    return (
        f"{few if usage.tokens < 20 * size else ''}Uniform usage would give a perplexity of about {short(reach)} and "
        f"{usage.expected_used:,.0f} used codes with {counted(usage.tokens, 'token')}. Trained codebooks on natural "
        f"data usually reach 0.5 to 0.9 of that perplexity, here {short(low)} to {short(high)}. This codebook is "
        f"{_place(usage)}."
    )


def _place(usage: Usage) -> str:
    """Whether the perplexity is below, within or above the usual range."""
    low, high = healthy_range(usage)
    if usage.used == 1 or usage.perplexity < low:
        return "below that range"
    return "above that range, close to uniform usage" if usage.perplexity > high else "within that range"


def _judged(others: Sequence[Usage]) -> list[str]:
    """A sentence on the levels after the first."""
    places: dict[str, list[int]] = {}
    for level, usage in enumerate(others, 1):
        if usage.codebook_size > 1 and usage.tokens > 1:
            places.setdefault(_place(usage), []).append(level)
    judged = "; ".join(
        f"{listed('level', levels)} {'is' if len(levels) == 1 else 'are'} {place}" for place, levels in places.items()
    )
    return [f"The same range, 0.5 to 0.9 of uniform usage, applies to the other levels: {judged}."] if judged else []


def _batch(usage: Usage, batch_tokens: int | None) -> str:
    tokens = batch_tokens or 256
    size = usage.codebook_size
    return (
        f"A single batch of {counted(tokens, 'token')} can use at most {counted(min(tokens, size), 'code')}, and "
        f"uniform usage would give it a perplexity of {short(expected_perplexity(size, tokens))}. This limit applies "
        "to means over batches as well, so all values here are counted over a whole pass."
    )
