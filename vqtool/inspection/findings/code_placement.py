"""Codes that lie where they are of no use."""

import math
from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings.advice import power_above, reviving, smaller
from vqtool.inspection.findings.usage import has_collapsed

# Parts of a codebook.
_DUPLICATES, _OUTSIDE = 0.02, 0.01
# Root mean square of the chosen codes over that of the latents: against what a code of as many bits should have, and as
# it is. The means of latents spread less far than these, and few codes in many dimensions far less.
_TOO_SMALL, _TOO_LARGE = 1 / 3, 2.0


def duplicate_codes(evidence: Evidence) -> Iterator[Finding]:
    """Codes that are nearer to each other than latents are to codes."""
    for number, usage in evidence.codebooks:
        duplicates = evidence.metric(number, "duplicates")
        if duplicates is not None and duplicates >= 2 and duplicates > _DUPLICATES * usage.codebook_size:
            yield Finding(
                "duplicate_codes",
                "warning",
                f"{duplicates:,.0f} of {usage.codebook_size:,} codes{evidence.which(number)} are nearly identical "
                "to another code",
                {"level": number, "duplicates": duplicates, "codebook_size": usage.codebook_size},
                "there are more codes than distinct latents, or codes were initialised or reset at the same position",
                () if has_collapsed(usage) else tuple(smaller(evidence, power_above(_different(evidence)))),
            )


def _different(evidence: Evidence) -> int:
    """The codes, of the level that has most, if one of each two duplicates is left: of more alike, one still would be.

    All levels have one size. What a collapsed codebook has says nothing of how many codes there should be.
    """
    known = [(usage.codebook_size, evidence.metric(number, "duplicates")) for number, usage in evidence.codebooks]
    return max(size - int(duplicates or 0) // 2 for size, duplicates in known)


def outlier_codes(evidence: Evidence) -> Iterator[Finding]:
    """Codes outside the cloud of latents."""
    for number, usage in evidence.codebooks:
        outside = evidence.metric(number, "outside")
        if outside and outside > _OUTSIDE * usage.codebook_size:
            yield Finding(
                "outlier_codes",
                "warning",
                f"{outside:,.0f} of {usage.codebook_size:,} codes{evidence.which(number)} "
                f"{'lies' if outside == 1 else 'lie'} far from all latents",
                {"level": number, "outside": outside, "codebook_size": usage.codebook_size},
                "they were initialised there, or the latents moved or shrank away from them",
                tuple(reviving(evidence)),
            )


def scale_mismatch(evidence: Evidence) -> Iterator[Finding]:
    """Codes on another scale than the latents."""
    for number, _ in evidence.codebooks:
        spread = evidence.metric(number, "spread")
        if spread is not None and not _TOO_SMALL * _least_spread(evidence, number) <= spread <= _TOO_LARGE:
            yield Finding(
                "scale_mismatch",
                "severe",
                f"the RMS spread of the codes{evidence.which(number)} is {spread:.3g} times that of the latents",
                {"level": number, "spread": spread},
                "codes initialised at another scale than the latents get few hits until they have moved to the latents",
                tuple(reviving(evidence)),
            )


def _least_spread(evidence: Evidence, level: int) -> float:
    """Of the best code of as many bits for a Gaussian, over that of its latents (Cover & Thomas 2006, 10.3.2)."""
    dim, size = evidence.setting("codebook_dim"), evidence.levels[level].codebook_size
    return float(-math.expm1(-2 * math.log(size) / dim)) ** 0.5 if isinstance(dim, int) else 0.0
