"""What is wrong with a codebook: each finding is one function over the evidence, and this the table of them."""

from collections.abc import Callable, Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings.capacity import codebook_saturated, codebook_too_large
from vqtool.inspection.findings.code_placement import duplicate_codes, outlier_codes, scale_mismatch
from vqtool.inspection.findings.collisions import collisions
from vqtool.inspection.findings.dead_codes import dead_codes
from vqtool.inspection.findings.decoder import decoder_ignores_codes
from vqtool.inspection.findings.entropy import temperature_too_high, temperature_too_low
from vqtool.inspection.findings.frozen_codebook import codebook_frozen
from vqtool.inspection.findings.levels import weak_level
from vqtool.inspection.findings.trends import latents_diverging, usage_dropping
from vqtool.inspection.findings.usage import collapse, dominant_code

FINDINGS: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    collapse,
    dead_codes,
    dominant_code,
    decoder_ignores_codes,
    scale_mismatch,
    outlier_codes,
    duplicate_codes,
    codebook_frozen,
    temperature_too_high,
    temperature_too_low,
    latents_diverging,
    usage_dropping,
    weak_level,
    collisions,
    codebook_too_large,
    codebook_saturated,
)

# What is so from the first step on. All else takes training: while that has but begun, any run looks sick.
_FROM_THE_START = {codebook_too_large}

_ORDER = ("severe", "warning", "note")


def diagnose(evidence: Evidence) -> list[Finding]:
    """All that is found, the severe first."""
    telling = [find for find in FINDINGS if find in _FROM_THE_START or evidence.young_until is None]
    found = [finding for find in telling for finding in find(evidence)]
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))


__all__ = ["FINDINGS", "diagnose"]
