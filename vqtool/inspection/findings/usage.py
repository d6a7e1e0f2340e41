"""Codes that everything goes to."""

from collections.abc import Iterator

import torch

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.explain import expected_perplexity
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings.advice import narrowing, reviving, spreading
from vqtool.inspection.words import short
from vqtool.metrics.usage import Usage, usage_from_counts

# Perplexity, as a part of what even use would show, below which a codebook has collapsed; both counted from 1, the
# least that there can be, so that small codebooks can collapse, too.
_COLLAPSED = 0.1
# Codebooks below this size are too small to speak of collapse; and fewer tokens than these may well be one sample's.
_SMALL, _FEW_TOKENS = 8, 20
# The part of all tokens that one code may have.
_LARGEST_SHARE = 0.3
# Tokens without which that part is not known: of as many, a share of three tenths is within a tenth, two deviations.
_TELLING = 100
# Perplexity as above, from which on the codes beside a large one are in good use.
_EVEN = 0.3
# For index files with several levels, before what is true of a shared codebook.
IF_SHARED = "the file does not record whether its levels share a codebook; if they do, that codebook"


def collapse(evidence: Evidence) -> Iterator[Finding]:
    """Few codes do all the work."""
    for number, usage in evidence.codebooks:
        if has_collapsed(usage):
            whole, even = evidence.perhaps_shared, expected_perplexity(usage.codebook_size, usage.tokens)
            healthy = whole is not None and not has_collapsed(whole)
            yield Finding(
                "collapse",
                "warning" if healthy else "severe",
                f"the codebook{evidence.which(number)} has collapsed: perplexity {usage.perplexity:,.1f}, uniform "
                f"usage would give {short(even)}",
                {"level": number, "perplexity": usage.perplexity, "expected_perplexity": even},
                _cause(evidence)
                + (f"; {IF_SHARED} has a perplexity of {whole.perplexity:,.1f}" if whole and healthy else ""),
                (*spreading(evidence), *reviving(evidence), *narrowing(evidence)),
            )


def dominant_code(evidence: Evidence) -> Iterator[Finding]:
    """One code that swallows a large share: worth knowing, and a fault where the others are not in even use either."""
    for number, usage in evidence.codebooks:
        code = usage.counts.index(max(usage.counts))
        share = usage.counts[code] / max(1, usage.tokens)
        if usage.codebook_size >= _SMALL and usage.tokens >= _TELLING and share > _LARGEST_SHARE:
            yield Finding(
                "dominant_code",
                "note" if _others_are_even(usage, code) else "warning",
                f"code {code}{evidence.which(number)} has {share:.0%} of all tokens",
                {"level": number, "code": code, "share": share},
                "much of the data is nearly identical, such as background, silence or padding; this can be correct"
                if _others_are_even(usage, code)
                else f"much of the data is nearly identical, or {_cause(evidence)}",
                (*spreading(evidence), *reviving(evidence)),
            )


def has_collapsed(usage: Usage) -> bool:
    """Whether a codebook of some size has its tokens, if there are some, on very few codes."""
    telling = usage.codebook_size >= _SMALL and usage.tokens >= _FEW_TOKENS
    return telling and _evenness(usage) < _COLLAPSED


def _evenness(usage: Usage) -> float:
    """0: one code has all tokens; 1: use is as even as so many tokens allow."""
    return (usage.perplexity - 1) / max(1e-9, expected_perplexity(usage.codebook_size, usage.tokens) - 1)


def _others_are_even(usage: Usage, code: int) -> bool:
    others = usage_from_counts(torch.tensor(usage.counts[:code] + usage.counts[code + 1 :]))
    return others.tokens > 1 and _evenness(others) > _EVEN


def _cause(evidence: Evidence) -> str:
    if evidence.given:
        return "the encoder maps all latents to nearly the same values"
    return "the codes are far from most latents or are not updated by them, so that the few nearest codes get all hits"
