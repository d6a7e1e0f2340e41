"""Plain-language explanations of usage and perplexity: is this perplexity good for K codes and T tokens?

Shapes: K codes, T tokens.
"""

import math
from collections.abc import Sequence

import numpy as np

from vqtool.metrics.usage import Usage
from vqtool.runtime.terminal import pluralize

# Usual perplexity of trained codebooks, as fractions of the perplexity of uniform usage.
_MIN_HEALTHY_FRACTION, _MAX_HEALTHY_FRACTION = 0.5, 0.9
# Above this mean number of hits per code, the first-order bias correction of the entropy is accurate enough.
_MIN_MEAN_HITS_FOR_BIAS_CORRECTION = 50.0
# With fewer tokens per code than this, codes without hits can be chance.
_MIN_TOKENS_PER_CODE = 20
# Batch size, in tokens, of the example if that of the run is unknown.
_EXAMPLE_BATCH_TOKENS = 256

_SAMPLE_KIND_NOTES = {
    "images": "Images contain many similar plain areas, so a few codes with far more hits than the mean are normal.",
    "grids": "Tile maps repeat a small number of patterns, so a lower perplexity than for other data is normal.",
    "sequences": "Sequences contain silence and constant segments, so a few codes with far more hits than the mean are "
    "normal.",
    "vectors": "Vectors rarely repeat, so usage close to uniform is best: it distinguishes the most samples.",
}


def expected_perplexity(codebook_size: int, tokens: int) -> float:
    """Return exp(E[H]) for T tokens drawn uniformly from K codes; with few tokens per code it is far below K.

    H = ln T - (sum over k of h[k]·ln h[k]) / T is the entropy, in nats, of the hits h[k]. For more than 50 tokens per
    code E[H] is ln K - (K - 1) / 2T (Miller 1955, "Note on the bias of information estimates"). Otherwise h[k] is
    approximated as Poisson with mean T/K. Without tokens the result is 1.
    """
    if tokens <= 0:
        return 1.0
    mean = tokens / codebook_size
    if mean > _MIN_MEAN_HITS_FOR_BIAS_CORRECTION:
        return codebook_size * math.exp(-(codebook_size - 1) / (2 * tokens))
    hits = np.arange(1, int(mean + 20 * math.sqrt(mean)) + 30)
    probabilities = np.exp(hits * math.log(mean) - mean - np.cumsum(np.log(hits)))
    entropy = math.log(tokens) - float((probabilities * hits * np.log(hits)).sum()) / mean
    # With few tokens the Poisson approximation can leave the possible range, 1 to min(T, K).
    return math.exp(min(max(entropy, 0.0), math.log(min(tokens, codebook_size))))


def healthy_perplexity_range(usage: Usage) -> tuple[float, float]:
    """Return the usual minimum and maximum perplexity of trained codebooks with this K and T.

    They are 0.5 and 0.9 times the expected perplexity of uniform usage, at least 1.
    """
    uniform = expected_perplexity(usage.codebook_size, usage.tokens)
    return max(1.0, _MIN_HEALTHY_FRACTION * uniform), max(1.0, _MAX_HEALTHY_FRACTION * uniform)


def explain(levels: Sequence[Usage], sample_kind: str | None = None, batch_tokens: int | None = None) -> list[str]:
    """Return sentences on the perplexity, its usual range, and the limits of the perplexity of a single batch.

    Args:
        levels: usage per level; the first is explained in full, the others are only compared with the usual range.
        sample_kind: "images", "grids", "sequences" or "vectors"; None if unknown.
        batch_tokens: tokens of a training batch; None: explain with a batch of 256 tokens.
    """
    first, *later_levels = levels
    sentences = _explain_level(first, sample_kind, batch_tokens, " of level 0" if later_levels else "")
    levels_by_position: dict[str, list[int]] = {}
    for level, usage in enumerate(later_levels, 1):
        if usage.codebook_size > 1 and usage.tokens > 1:
            levels_by_position.setdefault(_position_in_range(usage), []).append(level)
    positions = "; ".join(
        f"{join_numbers('level', numbers)} {'is' if len(numbers) == 1 else 'are'} {position}"
        for position, numbers in levels_by_position.items()
    )
    if positions:
        sentences.append(f"The same range, 0.5 to 0.9 of uniform usage, applies to the other levels: {positions}.")
    return sentences


def _explain_level(usage: Usage, sample_kind: str | None, batch_tokens: int | None, level_suffix: str) -> list[str]:
    size, tokens = usage.codebook_size, pluralize(usage.tokens, "token")
    if not usage.tokens:
        return ["No tokens were counted, so usage and perplexity are undefined."]
    if size == 1:
        return [f"The codebook{level_suffix} has a single code, so every token is the same: 0 bits per token."]
    if usage.tokens == 1:
        return ["Only one token was counted. Count more data to measure usage and perplexity."]
    uniform = format_code_count(expected_perplexity(size, usage.tokens))
    low, high = map(format_code_count, healthy_perplexity_range(usage))
    hint = f"{tokens} are few for {size:,} codes: count more data before you judge dead codes. "
    sentences = [
        f"The perplexity{level_suffix} is {usage.perplexity:,.1f} of K = {size:,}: {usage.entropy_bits:.2f} bits "
        f"per token, as many as {usage.perplexity:,.1f} uniformly used codes would have.",
        f"{hint if usage.tokens < _MIN_TOKENS_PER_CODE * size else ''}Uniform usage would give a perplexity of about "
        f"{uniform} and {usage.expected_used:,.0f} used codes with {tokens}. Trained codebooks on natural data usually "
        f"reach 0.5 to 0.9 of that perplexity, here {low} to {high}. This codebook is {_position_in_range(usage)}.",
    ]
    if sample_kind in _SAMPLE_KIND_NOTES:
        sentences.append(_SAMPLE_KIND_NOTES[sample_kind])
    batch = batch_tokens or _EXAMPLE_BATCH_TOKENS
    batch_perplexity = format_code_count(expected_perplexity(size, batch))
    return [
        *sentences,
        f"A single batch of {pluralize(batch, 'token')} can use at most {pluralize(min(batch, size), 'code')}, and "
        f"uniform usage would give it a perplexity of {batch_perplexity}. This limit applies to means over batches as "
        "well, so all values here are counted over a whole pass.",
    ]


def _position_in_range(usage: Usage) -> str:
    low, high = healthy_perplexity_range(usage)
    if usage.used == 1 or usage.perplexity < low:
        return "below that range"
    return "above that range, close to uniform usage" if usage.perplexity > high else "within that range"


def early_training_note(step: int) -> str:
    """Return a sentence that says why almost no findings are reported for a run that has not reached this step."""
    return f"Before step {step:,}, only codebook_too_large is reported: other problems can still disappear in training."


def format_code_count(number: float) -> str:
    """Format an effective number of codes (a perplexity): `1.4` below 10, `187` or `2,048` from 10 up."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def join_numbers(noun: str, numbers: Sequence[int]) -> str:
    """Return numbers with their noun: `level 2`, `levels 1, 3 and 4`."""
    *first, last = map(str, numbers)
    return f"{noun}s {', '.join(first)} and {last}" if first else f"{noun} {last}"
