"""Findings about the hits per code: collapse, dead codes, a dominant code."""

from collections.abc import Iterator

import torch

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.explain import expected_perplexity, format_code_count
from vqtool.inspection.finding import Change, Finding, Severity
from vqtool.inspection.findings.advice import (
    move_codes_to_latents,
    next_power_of_two,
    raise_entropy_weight,
    reduce_codebook_dim,
    reduce_codebook_size,
    reduce_fixed_codes,
    reduce_learning_rate,
)
from vqtool.metrics.usage import Usage, usage_from_counts
from vqtool.runtime.terminal import pluralize

# Smaller codebooks are not checked for collapse or a dominant code: few codes with most of the tokens are normal there.
_MIN_CODEBOOK_SIZE = 8
# Relative perplexity (see `_relative_perplexity`) below which a codebook has collapsed.
_MIN_RELATIVE_PERPLEXITY = 0.1
# Fewer tokens may come from a single sample.
_MIN_TOKENS_FOR_COLLAPSE = 20
# With fewer tokens per code, a code without hits can be chance.
_MIN_TOKENS_PER_CODE = 20
# At least this many dead codes, and more than this fraction of the codebook, are worth a change.
_MIN_DEAD_CODES, _MAX_DEAD_FRACTION = 2, 0.02
# Fraction of dead codes above which the finding is severe.
_MAX_DEAD_FRACTION_FOR_WARNING = 0.5
# Fraction of the tokens above which a code is dominant.
_MAX_CODE_FRACTION = 0.3
# With 100 tokens a fraction of 0.3 is accurate to 0.1, two standard deviations.
_MIN_TOKENS_FOR_CODE_FRACTION = 100
# Relative perplexity of the other codes above which a dominant code can be due to the data.
_MIN_RELATIVE_PERPLEXITY_OF_OTHER_CODES = 0.3

_IF_SHARED = "the file does not record whether its levels share a codebook; if they do, that codebook"


def collapse(evidence: Evidence) -> Iterator[Finding]:
    """Report codebooks in which very few codes get almost all tokens, see `has_collapsed`.

    Severe; a warning if the levels may share a codebook, and their summed counts have not collapsed.
    """
    for level, usage in evidence.codebooks:
        if not has_collapsed(usage):
            continue
        uniform = expected_perplexity(usage.codebook_size, usage.tokens)
        severity: Severity = "severe"
        cause, shared = _concentration_cause(evidence), evidence.possibly_shared_usage
        if shared is not None and not has_collapsed(shared):
            severity = "warning"
            cause += f"; {_IF_SHARED} has a perplexity of {shared.perplexity:,.1f}"
        yield Finding(
            "collapse",
            severity,
            f"the codebook{evidence.codebook_suffix(level)} has collapsed: perplexity {usage.perplexity:,.1f}, uniform "
            f"usage would give {format_code_count(uniform)}",
            {"level": level, "perplexity": usage.perplexity, "expected_perplexity": uniform},
            cause,
            (*raise_entropy_weight(evidence), *move_codes_to_latents(evidence), *reduce_codebook_dim(evidence)),
        )


def dead_codes(evidence: Evidence) -> Iterator[Finding]:
    """Report dead codes: at least 2, and more than 2% of a codebook that has at least 20 tokens per code.

    Severe if more than 50% of the codes are dead, otherwise a warning. If the levels may share a codebook, it is severe
    only if more than 50% are dead in the summed counts too.

    In the evidence of the finding, `never_hit` is the number of dead codes that were never hit in training, and
    `last_hit` is the mean step at which the others were hit last. Both are None for fixed codes or if unknown.
    """
    for level, usage in evidence.codebooks:
        size, dead = usage.codebook_size, usage.dead
        enough_tokens = usage.tokens >= _MIN_TOKENS_PER_CODE * size
        if not (enough_tokens and dead >= _MIN_DEAD_CODES and dead > _MAX_DEAD_FRACTION * size):
            continue
        never_hit = None if evidence.has_fixed_codes else evidence.metric(level, "never_hit")
        last_hit = None if evidence.has_fixed_codes else evidence.metric(level, "last_hit")
        cause, shared = _dead_code_cause(evidence, dead, never_hit), evidence.possibly_shared_usage
        if shared and shared.dead != dead:
            cause += f"; {_IF_SHARED} has {pluralize(shared.dead, 'dead code')}"
        surely_dead = min(dead, shared.dead) if shared else dead
        yield Finding(
            "dead_codes",
            "severe" if surely_dead > _MAX_DEAD_FRACTION_FOR_WARNING * size else "warning",
            f"{dead:,} of {size:,} codes{evidence.codebook_suffix(level)} have no hits ({usage.tokens / size:,.0f} "
            f"tokens per code){_hit_history(dead, never_hit, last_hit)}",
            {"level": level, "dead": dead, "never_hit": never_hit, "last_hit": last_hit, "tokens": usage.tokens},
            cause,
            tuple(_dead_code_changes(evidence, usage, never_hit)),
        )


def dominant_code(evidence: Evidence) -> Iterator[Finding]:
    """Report a code with more than 30% of the tokens of a codebook; needs at least 8 codes and 100 tokens.

    A note if the relative perplexity of the other codes is above 0.3, otherwise a warning.
    """
    for level, usage in evidence.codebooks:
        code = usage.counts.index(max(usage.counts))
        fraction = usage.counts[code] / max(1, usage.tokens)
        measurable = usage.codebook_size >= _MIN_CODEBOOK_SIZE and usage.tokens >= _MIN_TOKENS_FOR_CODE_FRACTION
        if not (measurable and fraction > _MAX_CODE_FRACTION):
            continue
        other_codes = usage_from_counts(torch.tensor(usage.counts[:code] + usage.counts[code + 1 :]))
        other_codes_even = (
            other_codes.tokens > 1 and _relative_perplexity(other_codes) > _MIN_RELATIVE_PERPLEXITY_OF_OTHER_CODES
        )
        yield Finding(
            "dominant_code",
            "note" if other_codes_even else "warning",
            f"code {code}{evidence.codebook_suffix(level)} has {fraction:.0%} of all tokens",
            {"level": level, "code": code, "share": fraction},
            "much of the data is nearly identical, such as background, silence or padding; this can be correct"
            if other_codes_even
            else f"much of the data is nearly identical, or {_concentration_cause(evidence)}",
            (*raise_entropy_weight(evidence), *move_codes_to_latents(evidence)),
        )


def has_collapsed(usage: Usage) -> bool:
    """Return whether a codebook of at least 8 codes, with at least 20 tokens, has a relative perplexity below 0.1."""
    measurable = usage.codebook_size >= _MIN_CODEBOOK_SIZE and usage.tokens >= _MIN_TOKENS_FOR_COLLAPSE
    return measurable and _relative_perplexity(usage) < _MIN_RELATIVE_PERPLEXITY


def _relative_perplexity(usage: Usage) -> float:
    """Return (perplexity - 1) / (perplexity of uniform usage - 1): 0 if one code has all tokens, about 1 if uniform.

    Without the subtraction of 1, the smallest perplexity, the ratio of a small codebook could not be close to 0.
    """
    return (usage.perplexity - 1) / max(1e-9, expected_perplexity(usage.codebook_size, usage.tokens) - 1)


def _concentration_cause(evidence: Evidence) -> str:
    if evidence.has_fixed_codes:
        return "the encoder maps all latents to nearly the same values"
    return "the codes are far from most latents or are not updated by them, so that the few nearest codes get all hits"


def _dead_code_cause(evidence: Evidence, dead: int, never_hit: float | None) -> str:
    if evidence.has_fixed_codes:
        return "the codes are fixed, and the encoder outputs cover a smaller range than the codes, or are correlated"
    if never_hit is None:
        return "codes far from all latents get no hits, and codes without hits are not updated"
    if never_hit > dead / 2:
        return "most were initialised far from all latents and never hit; codes without hits are not updated"
    return "most were hit earlier in training: the encoder then moved its latents away from these codes"


def _hit_history(dead: int, never_hit: float | None, last_hit: float | None) -> str:
    """Return the end of the message: how many of the dead codes were hit in training, and when; empty if unknown."""
    if never_hit is None:
        return ""
    if not dead - never_hit:
        return "; never hit in training: all of them"
    when = f" (last hit at step {last_hit:,.0f} on average)" if last_hit is not None else ""
    return f"; never hit in training: {never_hit:,.0f}, no longer hit: {dead - never_hit:,.0f}{when}"


def _dead_code_changes(evidence: Evidence, usage: Usage, never_hit: float | None) -> Iterator[Change]:
    """Yield changes that put codes to use, then changes that reduce the number of codes."""
    yield from raise_entropy_weight(evidence)
    yield from move_codes_to_latents(evidence)
    resets = evidence.quantizer_setting("dead_code_reset") is not None
    if resets and never_hit is not None and never_hit <= usage.dead / 2:  # hits are lost faster than codes are reset
        yield from reduce_learning_rate(evidence)
    yield from reduce_codebook_dim(evidence)
    if not has_collapsed(usage):  # a collapsed codebook does not show how many codes the data can use
        used = max(codebook.used for _, codebook in evidence.codebooks)  # all levels have the same K
        yield from reduce_codebook_size(evidence, next_power_of_two(used))
        yield from reduce_fixed_codes(evidence, used)
