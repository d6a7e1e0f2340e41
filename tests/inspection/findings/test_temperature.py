"""Findings about the temperature, at both sides of their thresholds."""

from dataclasses import replace

import pytest

from tests.inspection.findings.evidence_builders import finding_names, make_evidence, make_settings

UNEVEN_HITS = [400] * 8 + [1] * 24  # an entropy of 0.63 ln 32


@pytest.mark.parametrize(
    ("soft_entropy", "hits", "reported"), [(0.96, UNEVEN_HITS, 1), (0.94, UNEVEN_HITS, 0), (0.96, [40] * 32, 0)]
)
def test_temperature_too_high(soft_entropy: float, hits: list[int], reported: bool) -> None:
    settings = make_settings(loss={"entropy": 0.1})
    evidence = make_evidence(hits, metrics={"codebook/soft_entropy": soft_entropy}, settings=settings)
    assert ("temperature_too_high" in finding_names(evidence)) == reported
    assert "temperature_too_high" not in finding_names(replace(evidence, settings=make_settings()))


@pytest.mark.parametrize(
    ("sample_entropy", "error", "reported"), [(9e-4, 6.0, True), (2e-3, 6.0, False), (9e-4, 4.0, False)]
)  # the temperature of 1 is 0.17 or 0.25 times the error
def test_temperature_too_low(sample_entropy: float, error: float, reported: bool) -> None:
    metrics = {"codebook/sample_entropy": sample_entropy, "validation/loss/commitment": error}
    evidence = make_evidence(metrics=metrics, settings=make_settings(loss={"entropy": 0.1}))
    assert ("temperature_too_low" in finding_names(evidence)) == reported
    assert "temperature_too_low" not in finding_names(replace(evidence, settings=make_settings()))
