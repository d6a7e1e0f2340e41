"""Findings about the positions of codes, at both sides of their thresholds."""

from dataclasses import replace

import pytest

from tests.inspection.findings.evidence_builders import (
    finding_names,
    make_evidence,
    make_settings,
    residual_block,
    suggested_changes,
)
from vqtool.inspection.findings import diagnose


# 16 codes in 4 dimensions: the optimal spread is sqrt(1 - 16^(-2/4)) = 0.866, a third of it 0.289.
@pytest.mark.parametrize(("spread", "reported"), [(0.28, True), (0.30, False), (1.99, False), (2.01, True)])
def test_scale_mismatch(spread: float, reported: bool) -> None:
    evidence = make_evidence(metrics={"codebook/spread": spread}, settings=make_settings())
    assert ("scale_mismatch" in finding_names(evidence)) == reported


@pytest.mark.parametrize(("outside", "reported"), [(0.0, False), (1.0, False), (2.0, True)])
def test_outlier_codes_are_over_1_percent_of_the_codes(outside: float, reported: bool) -> None:
    evidence = make_evidence([20] * 100, metrics={"codebook/outside": outside})
    assert ("outlier_codes" in finding_names(evidence)) == reported


def test_message_of_a_single_outlier_is_singular() -> None:
    (outlier,) = diagnose(make_evidence(metrics={"codebook/outside": 1.0}))
    assert "1 of 16 codes lies" in outlier.message


@pytest.mark.parametrize(
    ("size", "duplicates", "reported"), [(16, 1, False), (16, 2, True), (200, 4, False), (200, 5, True)]
)
def test_duplicate_codes_are_at_least_2_and_over_2_percent(size: int, duplicates: int, reported: bool) -> None:
    evidence = make_evidence([20] * size, metrics={"codebook/duplicates": float(duplicates)})
    assert ("duplicate_codes" in finding_names(evidence)) == reported


@pytest.mark.parametrize(("duplicates", "size"), [(6, None), (120, None), (128, "64"), (48, None)])
def test_suggested_codebook_size_holds_half_of_the_duplicates(duplicates: int, size: str | None) -> None:
    settings = make_settings({"kind": "vector", "codebook_size": 128, "codebook_dim": 4})
    evidence = make_evidence([20] * 128, settings=settings, metrics={"codebook/duplicates": float(duplicates)})
    assert suggested_changes(evidence, "duplicate_codes").get("model.quantizer.codebook_size") == size


def test_shared_codebook_is_reported_once() -> None:
    values = {"outside": 3.0, "duplicates": 5.0, "spread": 9.0, "movement": 0.0, "error": 0.5}
    metrics = {f"codebook/level_{level}/{name}": value for level in (0, 1) for name, value in values.items()}
    history = [{"step": step, **metrics} for step in (100, 200, 300)]
    hits = [[20] * 16, [20] * 16]
    shared = make_evidence(*hits, metrics=metrics, history=history, settings=make_settings(residual_block(shared=True)))
    findings = diagnose(shared)
    expected = {"outlier_codes", "duplicate_codes", "scale_mismatch", "codebook_frozen"}
    assert sorted(finding.name for finding in findings) == sorted(expected)
    assert not any("level" in finding.message for finding in findings)
    separate = diagnose(replace(shared, settings=make_settings(residual_block())))
    assert sorted(finding.name for finding in separate) == sorted([*expected, *expected])
    assert sum("of level 1" in finding.message for finding in separate) == 4
