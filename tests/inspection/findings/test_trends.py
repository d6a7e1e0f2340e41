"""Findings about trends over validations, at both sides of their thresholds."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.inspection.findings.evidence_builders import finding_names, make_evidence, make_settings, validations
from vqtool.config import cumulative_lr
from vqtool.inspection.findings import diagnose


@pytest.mark.parametrize(
    ("last", "error", "reported"),
    [(5.1, 0.2, True), (4.9, 0.2, False), (3.1, 0.31, True), (2.9, 0.31, False), (3.1, 0.29, False)],
)
def test_latents_diverge_if_the_commitment_loss_grows_fivefold(last: float, error: float, reported: bool) -> None:
    """Or threefold if the relative quantization error grows by more than half."""
    errors = {"codebook/error": [0.2, 0.2, 0.2, error]}
    evidence = make_evidence(history=validations("validation/loss/commitment", 1.0, 1.0, 2.0, last, **errors))
    assert ("latents_diverging" in finding_names(evidence)) == reported
    # Three validations are too few.
    assert "latents_diverging" not in finding_names(replace(evidence, history=evidence.history[1:]))


@pytest.mark.parametrize(("halfway", "reported"), [(2.4, True), (2.6, False)])
def test_commitment_loss_that_levels_off_is_not_diverging(halfway: float, reported: bool) -> None:
    """The loss must double from step 200 to step 400."""
    evidence = make_evidence(history=validations("validation/loss/commitment", 0.1, halfway, 4.9, 5.0))
    assert ("latents_diverging" in finding_names(evidence)) == reported


def commitment_history(commitment: Callable[[float], float], every: int = 1) -> list[dict[str, Any]]:
    """Return validations of the first 300 steps with `commitment(step)` as commitment loss."""
    return [{"step": step, "validation/loss/commitment": commitment(step)} for step in range(every, 301, every)]


@pytest.mark.parametrize("every", [1, 2, 25])
def test_latents_diverging_does_not_depend_on_the_validation_interval(every: int) -> None:
    """In healthy runs the commitment loss grows tenfold within the first 100 steps, then levels off."""
    settings = make_settings()
    levels_off = commitment_history(lambda step: 0.03 + 0.28 / (1 + math.exp((45 - step) / 12)), every)
    keeps_growing = commitment_history(lambda step: 0.03 + 1e-4 * step**1.5, every)
    for last in range(4, len(levels_off) + 1):
        assert finding_names(make_evidence(history=levels_off[:last], settings=settings)) == set()
    for last in range(math.ceil(200 / every), len(keeps_growing) + 1):
        assert finding_names(make_evidence(history=keeps_growing[:last], settings=settings)) == {"latents_diverging"}


@pytest.mark.parametrize(("growth", "reported"), [(24, False), (26, True)])
@pytest.mark.parametrize("steps", [150, 1000])
def test_growth_at_the_start_of_training_needs_a_factor_of_25(growth: float, reported: bool, steps: int) -> None:
    """The second half of 150 steps begins before step 100, for a run of 150 steps and for a longer one."""
    settings = make_settings(training={"steps": steps, "schedule": "constant", "warmup_steps": 0})
    history = commitment_history(lambda step: 1.0 if step < 80 else growth)[:150]
    assert ("latents_diverging" in finding_names(make_evidence(history=history, settings=settings))) == reported


def test_second_half_of_training_is_measured_by_the_learning_rate() -> None:
    """A cosine schedule does half of the learning long before half of the steps."""
    cosine = make_settings(training={"steps": 300, "schedule": "cosine", "warmup_steps": 5})
    diverging = commitment_history(lambda step: 0.03 + 1e-4 * cumulative_lr(cosine.training, round(step)) ** 2)
    assert diverging[-1]["validation/loss/commitment"] < 2 * diverging[149]["validation/loss/commitment"]
    assert finding_names(make_evidence(history=diverging, settings=cosine)) == {"latents_diverging"}


@pytest.mark.parametrize(("tokens", "reported"), [(99, False), (100, True)])
def test_latents_diverging_needs_100_tokens(tokens: int, reported: bool) -> None:
    history = validations("validation/loss/commitment", 1.0, 1.0, 2.0, 9.0)
    evidence = make_evidence([tokens - 60, 20, 20, 20], history=history)
    assert ("latents_diverging" in finding_names(evidence)) == reported


def test_latents_that_diverge_after_the_best_validation_are_reported() -> None:
    history = validations("validation/loss/commitment", 1.0, 1.0, 20.0, 50.0)
    assert finding_names(make_evidence(history=history[:2], later=history[2:])) == {"latents_diverging"}
    comes_back = validations("validation/loss/commitment", 1.0, 50.0, 20.0, 8.0)
    assert finding_names(make_evidence(history=comes_back)) == set()


@pytest.mark.parametrize(("usage", "loss", "reported"), [(0.79, 0.4, True), (0.81, 0.4, False), (0.79, 1.1, False)])
def test_usage_dropping_while_reconstruction_improves(usage: float, loss: float, reported: bool) -> None:
    losses = {"validation/loss/reconstruction": [1.0, 0.8, 0.6, loss]}
    evidence = make_evidence(history=validations("codebook/usage", 0.9, 0.85, 0.85, usage, **losses))
    assert ("usage_dropping" in finding_names(evidence)) == reported
    with_reset = {"kind": "vector", "codebook_size": 16, "dead_code_reset": {"min_hits": 1}}
    causes = set()
    for quantizer in (with_reset, {**with_reset, "dead_code_reset": None}):
        findings = diagnose(replace(evidence, settings=make_settings(quantizer)))
        assert len(findings) == reported
        for finding in findings:
            causes.add(finding.cause)
            keys = {change.key for change in finding.changes}
            assert ("model.quantizer.dead_code_reset" in keys) == (quantizer["dead_code_reset"] is None)
    assert len(causes) == 2 * reported
