"""Findings about the codebook size: too many codes for the training data, or so few that more would pay off."""

from collections.abc import Iterator
from math import prod
from statistics import fmean

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.findings.advice import add_residual_level, previous_power_of_two, reduce_codebook_size
from vqtool.runtime.terminal import pluralize

# With fewer training tokens per code, the codes overfit them.
_MIN_TRAINING_TOKENS_PER_CODE = 20
# Perplexity, as a fraction of K, above which a codebook is used almost uniformly.
_MIN_SATURATED_PERPLEXITY = 0.9
# Errors are quantization errors as fractions of the variance of the latents. The metric `halving` is the factor by
# which the error would grow if the codes were merged in pairs: about 1.3 for D = 8, 1.6 for D = 4 and 2.1 for D = 2.
# With an optimal codebook of half the size it grows by 2^(2/D) = 1.19, 1.41 and 2. Above `_MIN_STEEP_HALVING`, more
# codes pay off even for a small error.
_MIN_STEEP_HALVING, _MIN_ERROR_IF_STEEP = 1.75, 0.1
# Above the error `_MIN_ERROR`, more codes pay off if `halving` is above `_MIN_HALVING`. Below it, merging codes hardly
# increases the error: the latents are noise at this number of codes.
_MIN_HALVING, _MIN_ERROR = 1.05, 0.5


def codebook_too_large(evidence: Evidence) -> Iterator[Finding]:
    """Report learned codebooks with fewer than 20 training tokens per code."""
    if evidence.training_tokens is None:
        return
    for level, usage in evidence.codebooks:
        if evidence.metric(level, "spread") is None:  # fixed codes need no training data; or latents do not vary
            continue
        tokens = evidence.levels_per_codebook * evidence.training_tokens
        tokens_per_code = tokens / usage.codebook_size
        if tokens_per_code < _MIN_TRAINING_TOKENS_PER_CODE:
            yield Finding(
                "codebook_too_large",
                "warning",
                f"{pluralize(usage.codebook_size, 'code')}{evidence.codebook_suffix(level)} and "
                f"{pluralize(tokens, 'training token')}: {tokens_per_code:,.1f} tokens per code",
                {"level": level, "tokens_per_code": tokens_per_code, "codebook_size": usage.codebook_size},
                f"codes with fewer than {_MIN_TRAINING_TOKENS_PER_CODE} training tokens each overfit them",
                tuple(reduce_codebook_size(evidence, previous_power_of_two(tokens // _MIN_TRAINING_TOKENS_PER_CODE))),
            )


def codebook_saturated(evidence: Evidence) -> Iterator[Finding]:
    """Report the first codebook whose quantization error more codes would clearly reduce.

    Only if the perplexity of every codebook is more than 0.9 times its K.
    """
    error = _relative_error(evidence)
    saturated = all(
        usage.perplexity > _MIN_SATURATED_PERPLEXITY * usage.codebook_size for _, usage in evidence.codebooks
    )
    if error is None or not saturated:
        return
    for level, usage in evidence.codebooks:
        halving = evidence.metric(level, "halving")
        if halving is None:
            continue
        if (error > _MIN_ERROR and halving > _MIN_HALVING) or (
            error > _MIN_ERROR_IF_STEEP and halving > _MIN_STEEP_HALVING
        ):
            yield Finding(
                "codebook_saturated",
                "note",
                f"the codebook{evidence.codebook_suffix(level)} is used almost uniformly (perplexity "
                f"{usage.perplexity:,.1f} of {usage.codebook_size:,}), and the quantization error is {error:.0%} of "
                "the variance of the latents",
                {"level": level, "perplexity": usage.perplexity, "error": error, "halving": halving},
                f"more codes would reduce the error; with half as many it would be up to {halving:.2g} times as large",
                tuple(_add_codes(evidence)),
            )
            return


def _relative_error(evidence: Evidence) -> float | None:
    """Return the quantization error after all levels, as a fraction of the variance of the latents.

    It is the product of the errors of the levels of a residual quantizer, and the mean over the groups of a product
    quantizer. None if the error of a level is unknown.
    """
    known = [error for level in range(len(evidence.levels)) if (error := evidence.metric(level, "error")) is not None]
    if len(known) < len(evidence.levels):
        return None
    depth = evidence.residual_depth
    return fmean(prod(known[first : first + depth]) for first in range(0, len(known), depth))


def _add_codes(evidence: Evidence) -> Iterator[Change]:
    """Yield one more residual level, or without a residual quantizer twice the codebook size."""
    size = evidence.quantizer_setting("codebook_size")
    if evidence.residual_levels:
        yield from add_residual_level(evidence, "one more code for the residual")
    elif isinstance(size, int):
        yield Change(evidence.quantizer_key("codebook_size"), str(2 * size), "one more bit per token")
