"""Codes that nothing goes to, and codes that everything goes to."""

from collections.abc import Iterator

import torch

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings.advice import narrowing, reviving, smaller
from vqtool.usage import Usage, usage_of

# Below so many tokens a code, one without a hit says little.
_ENOUGH = 20
# Parts of a codebook that may be dead, and from which on that is severe.
_FEW, _MANY = 0.02, 0.5
# Perplexity, as a part of what even use would reach, below which a codebook has collapsed; both counted from 1, the
# least that there can be, so that small codebooks can collapse, too.
_COLLAPSED = 0.1
# Codebooks below this size are too small to speak of collapse.
_SMALL = 8
# Figures of dead codes, by level.
_WHEN = ("never_hit", "last_hit")
# The part of all tokens that one code may have.
_LARGEST_SHARE = 0.3
# Perplexity as above, from which on the codes beside a large one are in good use.
_EVEN = 0.3


def collapse(evidence: Evidence) -> Iterator[Finding]:
    """Few codes do all the work."""
    for number, usage in enumerate(evidence.codebooks):
        if usage.codebook_size >= _SMALL and usage.tokens > 1 and _evenness(usage) < _COLLAPSED:
            yield Finding(
                "collapse",
                "severe",
                f"the codebook{evidence.where(number)} has collapsed: perplexity {usage.perplexity:,.1f}, where even "
                f"use would reach {usage.expected_used:,.0f}",
                {"level": number, "perplexity": usage.perplexity, "expected_used": usage.expected_used},
                "the codes lie far from most latents, or learn nothing from them, so that the few nearest win all",
                (*reviving(evidence), *narrowing(evidence)),
            )


def dead_codes(evidence: Evidence) -> Iterator[Finding]:
    """Codes without a hit, where there were tokens enough to hit them."""
    for number, usage in enumerate(evidence.codebooks):
        size, dead = usage.codebook_size, usage.dead
        if usage.tokens >= _ENOUGH * size and dead > _FEW * size:
            never, last = (None if evidence.shared else evidence.metric(number, name) for name in _WHEN)
            yield Finding(
                "dead_codes",
                "severe" if dead > _MANY * size else "warning",
                f"{dead:,} of {size:,} codes{evidence.where(number)} have no hit ({usage.tokens / size:,.0f} tokens a "
                f"code){_history(dead, never, last)}",
                {"level": number, "dead": dead, "never_hit": never, "last_hit": last, "tokens": usage.tokens},
                _cause(dead, never),
                (*reviving(evidence), *narrowing(evidence), *smaller(evidence, usage.used)),
            )


def dominant_code(evidence: Evidence) -> Iterator[Finding]:
    """One code that swallows a large share: worth knowing, and a fault where the others are not in even use either."""
    for number, usage in enumerate(evidence.codebooks):
        code = usage.counts.index(max(usage.counts))
        share = usage.counts[code] / max(1, usage.tokens)
        if usage.codebook_size >= _SMALL and share > _LARGEST_SHARE:
            yield Finding(
                "dominant_code",
                "note" if _others_are_even(usage, code) else "warning",
                f"code {code}{evidence.where(number)} has {share:.0%} of all tokens",
                {"level": number, "code": code, "share": share},
                "much of the data is all but the same: a background, silence, or padding, which may be as it should"
                if _others_are_even(usage, code)
                else "much of the data is all but the same, or the other codes lie far from the latents",
                tuple(reviving(evidence)),
            )


def _evenness(usage: Usage) -> float:
    """0: one code has all tokens; 1: use is as even as so many tokens allow."""
    return (usage.perplexity - 1) / max(1e-9, usage.expected_used - 1)


def _others_are_even(usage: Usage, code: int) -> bool:
    others = usage_of(torch.tensor(usage.counts[:code] + usage.counts[code + 1 :]))
    return others.tokens > 1 and _evenness(others) > _EVEN


def _history(dead: int, never: float | None, last: float | None) -> str:
    if never is None:
        return ""
    if not dead - never:
        return "; training never hit any of them"
    when = f", on average at step {last:,.0f} for the last time" if last is not None else ""
    return f"; training never hit {never:,.0f}, and lost {dead - never:,.0f}{when}"


def _cause(dead: int, never: float | None) -> str:
    if never is None:
        return "codes that are far from all latents win none, and what wins none does not move"
    if never > dead / 2:
        return "most were never reached: they started where no latents are, and what wins none does not move"
    return "most were lost along the way: the encoder moved its latents away from codes that then won none"
