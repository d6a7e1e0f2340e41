"""Findings about the positions of the codes relative to the latents and to each other.

Shapes: K codes, D dimensions.
"""

import math
from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings.advice import move_codes_to_latents, next_power_of_two, reduce_codebook_size
from vqtool.inspection.findings.usage import has_collapsed

# At least this many duplicates, and more than this fraction of the codebook, are reported.
_MIN_DUPLICATES, _MAX_DUPLICATE_FRACTION = 2, 0.02
# Fraction of the codebook that may be outliers.
_MAX_OUTLIER_FRACTION = 0.01
# The metric `spread` is the RMS distance of the codes from the mean of the latents, weighted by hits, over the RMS
# distance of the latents from their mean. Its minimum is relative to `_optimal_spread`: codes are means of latents, so
# they spread less than the latents, much less for few codes in many dimensions.
_MIN_SPREAD_OVER_OPTIMAL, _MAX_SPREAD = 1 / 3, 2.0


def duplicate_codes(evidence: Evidence) -> Iterator[Finding]:
    """Report codebooks with at least 2, and more than 2%, duplicates: codes that are nearly identical to another."""
    for level, usage in evidence.codebooks:
        duplicates = evidence.metric(level, "duplicates")
        if (
            duplicates is not None
            and duplicates >= _MIN_DUPLICATES
            and duplicates > _MAX_DUPLICATE_FRACTION * usage.codebook_size
        ):
            # A collapsed codebook does not show how many codes the data can use.
            changes = [] if has_collapsed(usage) else reduce_codebook_size(evidence, _distinct_code_size(evidence))
            yield Finding(
                "duplicate_codes",
                "warning",
                f"{duplicates:,.0f} of {usage.codebook_size:,} codes{evidence.codebook_suffix(level)} are nearly "
                "identical to another code",
                {"level": level, "duplicates": duplicates, "codebook_size": usage.codebook_size},
                "there are more codes than distinct latents, or codes were initialised or reset at the same position",
                tuple(changes),
            )


def _distinct_code_size(evidence: Evidence) -> int:
    """Return the smallest power of two that is at least the number of distinct codes of every codebook.

    Two duplicates count as one distinct code, which is an upper bound if more than two codes coincide.
    """
    distinct = (
        usage.codebook_size - int(evidence.metric(level, "duplicates") or 0) // 2 for level, usage in evidence.codebooks
    )
    return next_power_of_two(max(distinct))


def outlier_codes(evidence: Evidence) -> Iterator[Finding]:
    """Report codebooks with more than 1% outliers: codes without hits, far from all latents.

    Far is more than 4 standard deviations of the latents from their mean, see `codebook_statistics`.
    """
    for level, usage in evidence.codebooks:
        outliers = evidence.metric(level, "outside")
        if outliers and outliers > _MAX_OUTLIER_FRACTION * usage.codebook_size:
            yield Finding(
                "outlier_codes",
                "warning",
                f"{outliers:,.0f} of {usage.codebook_size:,} codes{evidence.codebook_suffix(level)} "
                f"{'lies' if outliers == 1 else 'lie'} far from all latents",
                {"level": level, "outside": outliers, "codebook_size": usage.codebook_size},
                "they were initialised there, or the latents moved or shrank away from them",
                tuple(move_codes_to_latents(evidence)),
            )


def scale_mismatch(evidence: Evidence) -> Iterator[Finding]:
    """Report each codebook whose metric `spread` is above 2 or below `_optimal_spread` / 3.

    `spread` is the RMS spread of the codes relative to that of the latents. The upper limit of 2 is a fixed number.
    """
    for level, usage in evidence.codebooks:
        spread, optimal = evidence.metric(level, "spread"), _optimal_spread(evidence, usage.codebook_size)
        if spread is not None and not _MIN_SPREAD_OVER_OPTIMAL * optimal <= spread <= _MAX_SPREAD:
            yield Finding(
                "scale_mismatch",
                "severe",
                f"the RMS spread of the codes{evidence.codebook_suffix(level)} is {spread:.3g} times that of the "
                "latents",
                {"level": level, "spread": spread},
                "codes initialised at another scale than the latents get few hits until they have moved to the latents",
                tuple(move_codes_to_latents(evidence)),
            )


def _optimal_spread(evidence: Evidence, codebook_size: int) -> float:
    """Return the RMS spread of K optimal codes relative to that of Gaussian latents: sqrt(1 - K^(-2/D)).

    The formula follows from the rate-distortion bound of a Gaussian source (Cover & Thomas 2006, 10.3.2) at log2 K bits
    per latent. The value is 0 if D is unknown.
    """
    dim = evidence.quantizer_setting("codebook_dim")
    return float(-math.expm1(-2 * math.log(codebook_size) / dim)) ** 0.5 if isinstance(dim, int) else 0.0
