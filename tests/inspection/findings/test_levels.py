"""Finding of weak residual levels, at both sides of its threshold."""

import pytest

from tests.inspection.findings.evidence_builders import finding_names, make_evidence, make_settings, residual_block
from vqtool.inspection.findings import diagnose


@pytest.mark.parametrize(("error", "reported"), [(0.94, False), (0.96, True)])
def test_weak_level_leaves_over_95_percent_of_the_variance(error: float, reported: bool) -> None:
    metrics = {"codebook/level_0/error": 0.97, "codebook/level_1/error": error}
    evidence = make_evidence([20] * 16, [20] * 16, metrics=metrics, settings=make_settings(residual_block()))
    assert ("weak_level" in finding_names(evidence)) == reported


@pytest.mark.parametrize(
    ("errors", "weak", "fewer"),
    [
        ((0.5, 0.96, 0.97, 0.5, 0.96, 0.97), [1, 2, 4, 5], True),
        ((0.97, 0.5, 0.97, 0.97, 0.5, 0.96), [2, 5], True),
        ((0.5, 0.96, 0.5, 0.5, 0.96, 0.5), [1, 4], False),
        ((0.5, 0.5, 0.97, 0.5, 0.5, 0.5), [2], False),
    ],
)
def test_weak_levels_of_a_product_are_reported_by_group(
    errors: tuple[float, ...], weak: list[int], fewer: bool
) -> None:
    """All groups have the same number of levels, so fewer are suggested only if no group needs the later ones."""
    metrics = {f"codebook/level_{number}/error": error for number, error in enumerate(errors)}
    product = make_settings({"kind": "product", "groups": 2, "quantizer": residual_block(levels=3)})
    findings = diagnose(make_evidence(*[[20] * 16] * 6, metrics=metrics, settings=product))
    assert [finding.evidence["level"] for finding in findings] == weak
    key = "model.quantizer.quantizer.levels"
    for finding in findings:
        changes = {change.key: change.value for change in finding.changes}
        assert changes == ({key: str(finding.evidence["level"] % 3)} if fewer else {})
