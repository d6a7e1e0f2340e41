"""What the figures of a codebook mean, in plain words: is this perplexity good?

Shapes: K codes.
"""

import math
from collections.abc import Sequence

import numpy as np

from vqtool.inspection.words import counted, listed, short
from vqtool.usage import Usage

# Where trained codebooks that nobody complains of lie, in shares of what even use would show.
_LOW, _HIGH = 0.5, 0.9
# Hits a code from which on the series in 1 / hits is exact enough.
_MANY = 50.0

_KINDS = {
    "images": "Plain areas repeat in images, so that a few codes with far more than their share are normal.",
    "grids": "Maps of tiles repeat few patterns: fewer codes than elsewhere may be all that there is to tell apart.",
    "sequences": "Silence and steady stretches repeat, so that a few codes with far more than their share are normal.",
    "vectors": "Vectors rarely repeat: the more even the use, the more samples the codes tell apart.",
}


def expected_perplexity(codebook_size: int, tokens: int) -> float:
    """What even use of K codes would show over so many tokens, on average: with few of them, far less than K."""
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
    """Sentences on perplexity, on what is normal here, and on why a batch's own figure would mislead.

    Args:
        levels: the first is explained, and the others are judged by its measure.
        kind: of the data: images, grids, sequences or vectors.
        batch_tokens: of a training batch.
    """
    first, *others = levels
    return [*_explain(first, kind, batch_tokens, 0 if others else None), *_judged(others)]


def _explain(usage: Usage, kind: str | None, batch_tokens: int | None, level: int | None) -> list[str]:
    if not usage.tokens:
        return ["No token was counted, so there is nothing to say."]
    if usage.codebook_size == 1:
        of = "" if level is None else f" of level {level}"
        return [f"The codebook{of} has a single code, which every token is: 0 bits a token, and nothing to judge."]
    if usage.tokens == 1:
        return ["A single token was counted, which says nothing of how evenly codes are used: count more data."]
    sentences = [_perplexity(usage, level), _normal(usage)]
    if kind in _KINDS:
        sentences.append(_KINDS[kind])
    return [*sentences, _batch(usage, batch_tokens)]


def too_young(step: int) -> str:
    """Why hardly anything is found of a run that has not got to this step."""
    return f"Training has but begun: faults that it may still mend are looked for from step {step:,} on."


def healthy_range(usage: Usage) -> tuple[float, float]:
    """The perplexities between which trained codebooks mostly lie, for this K and this many tokens."""
    reach = expected_perplexity(usage.codebook_size, usage.tokens)
    return max(1.0, _LOW * reach), max(1.0, _HIGH * reach)


def _perplexity(usage: Usage, level: int | None) -> str:
    of = "" if level is None else f" of level {level}"
    return (
        f"Perplexity {usage.perplexity:,.1f}{of} means that the tokens say as much as {usage.perplexity:,.1f} codes "
        f"used evenly would, out of K = {usage.codebook_size:,}: {usage.entropy_bits:.2f} bits a token."
    )


def _normal(usage: Usage) -> str:
    size, (low, high) = usage.codebook_size, healthy_range(usage)
    reach = expected_perplexity(size, usage.tokens)
    few = f": few for {size:,} codes, so count more data before you judge the dead ones"
    return (
        f"{counted(usage.tokens, 'token')} were counted{few if usage.tokens < 20 * size else ''}. With as many, even "
        f"use would show a perplexity of about {short(reach)} and {usage.expected_used:,.0f} codes used; trained "
        f"codebooks on natural data mostly reach 0.5 to 0.9 of it, {short(low)} to {short(high)} here, and this one is "
        f"{_place(usage)}."
    )


def _place(usage: Usage) -> str:
    """Where a perplexity lies, seen from the range that is mostly reached."""
    low, high = healthy_range(usage)
    if usage.used == 1 or usage.perplexity < low:
        return "below that"
    return "above that, close to even use" if usage.perplexity > high else "within that"


def _judged(others: Sequence[Usage]) -> list[str]:
    """A sentence on the levels behind the first."""
    places: dict[str, list[int]] = {}
    for level, usage in enumerate(others, 1):
        if usage.codebook_size > 1 and usage.tokens > 1:
            places.setdefault(_place(usage), []).append(level)
    judged = "; ".join(
        f"{listed('level', levels)} {'is' if len(levels) == 1 else 'are'} {place}" for place, levels in places.items()
    )
    return [f"Of other levels 0.5 to 0.9 of what even use would show is the measure, too: {judged}."] if judged else []


def _batch(usage: Usage, batch_tokens: int | None) -> str:
    tokens = batch_tokens or 256
    size = usage.codebook_size
    return (
        f"Within a single batch of {counted(tokens, 'token')} at most {counted(min(tokens, size), 'code')} can be "
        f"used, and even use would show a perplexity of {short(expected_perplexity(size, tokens))}, whatever the "
        "codebook; the mean over batches says no more. So all figures here are over a whole pass."
    )
