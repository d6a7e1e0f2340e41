"""Findings about the codebook size, at both sides of their thresholds."""

from dataclasses import replace

import pytest

from tests.inspection.findings.evidence_builders import (
    find,
    finding_names,
    make_evidence,
    make_settings,
    residual_block,
    suggested_changes,
)
from vqtool.metrics.collisions import IdCounts


@pytest.mark.parametrize(("tokens", "reported"), [(319, True), (320, False)])
def test_codebook_too_large_below_20_training_tokens_per_code(tokens: int, reported: bool) -> None:
    evidence = make_evidence(metrics={"codebook/spread": 1.0}, training_tokens=tokens)
    assert ("codebook_too_large" in finding_names(evidence)) == reported
    # Fixed codes have no spread, and need no training data.
    assert "codebook_too_large" not in finding_names(make_evidence(training_tokens=tokens))


@pytest.mark.parametrize(("tokens", "reported"), [(159, True), (160, False)])
def test_shared_codebook_counts_the_training_tokens_of_all_its_levels(tokens: int, reported: bool) -> None:
    metrics = {"codebook/level_0/spread": 1.0, "codebook/level_1/spread": 1.0}
    hits = [[20] * 16, [20] * 16]
    settings = make_settings(residual_block(shared=True))
    shared = make_evidence(*hits, metrics=metrics, training_tokens=tokens, settings=settings)
    assert ("codebook_too_large" in finding_names(shared)) == reported
    assert "codebook_too_large" in finding_names(replace(shared, settings=make_settings(residual_block())))


@pytest.mark.parametrize(
    ("halving", "error", "reported"),
    [(1.8, 0.11, True), (1.7, 0.11, False), (1.8, 0.09, False), (1.1, 0.51, True), (1.04, 0.51, False)],
)
def test_codebook_saturated(halving: float, error: float, reported: bool) -> None:
    metrics = {"codebook/halving": halving, "codebook/error": error}
    assert ("codebook_saturated" in finding_names(make_evidence(metrics=metrics))) == reported
    assert "codebook_saturated" not in finding_names(make_evidence([200, 100] + [20] * 14, metrics=metrics))


def test_product_of_residual_quantizers_suggests_a_level_per_group() -> None:
    product = make_settings({"kind": "product", "groups": 2, "quantizer": residual_block()})
    key = "model.quantizer.quantizer.levels"
    colliding = make_evidence(*[[60] * 16] * 4, distinct=IdCounts(960, 480), settings=product)
    assert suggested_changes(colliding, "collisions") == {key: "3"}
    values = {"error": 0.4, "halving": 1.8}
    metrics = {f"codebook/level_{level}/{name}": value for level in range(4) for name, value in values.items()}
    saturated = replace(colliding, distinct=None, metrics=metrics)
    assert suggested_changes(saturated, "codebook_saturated") == {key: "3"}
    # Each group has two levels with a relative error of 0.4.
    assert find(saturated, "codebook_saturated").evidence["error"] == pytest.approx(0.4**2)
