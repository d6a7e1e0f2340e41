"""Findings: problems of a codebook. Each is one function from Evidence to findings, listed in FINDINGS."""

from collections.abc import Callable, Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings.capacity import codebook_saturated, codebook_too_large
from vqtool.inspection.findings.code_placement import duplicate_codes, outlier_codes, scale_mismatch
from vqtool.inspection.findings.collisions import collisions
from vqtool.inspection.findings.decoder import decoder_ignores_codes
from vqtool.inspection.findings.frozen_codebook import codebook_frozen
from vqtool.inspection.findings.levels import weak_level
from vqtool.inspection.findings.temperature import temperature_too_high, temperature_too_low
from vqtool.inspection.findings.trends import latents_diverging, usage_dropping
from vqtool.inspection.findings.usage import collapse, dead_codes, dominant_code

# In the order of display among findings of one severity.
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

# Findings that more training cannot change. Healthy runs can have the others in their first steps.
_EARLY_FINDINGS = {codebook_too_large}

_SEVERITY_ORDER = ("severe", "warning", "note")


def diagnose(evidence: Evidence) -> list[Finding]:
    """Return all findings, sorted by severity (severe, warning, note), then in the order of FINDINGS.

    While `early_until` of the evidence is not None, only findings that more training cannot change are returned.
    """
    functions = [find for find in FINDINGS if find in _EARLY_FINDINGS or evidence.early_until is None]
    findings = [finding for find in functions for finding in find(evidence)]
    return sorted(findings, key=lambda finding: _SEVERITY_ORDER.index(finding.severity))


__all__ = ["FINDINGS", "diagnose"]
