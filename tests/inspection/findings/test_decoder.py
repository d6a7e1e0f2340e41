"""Finding that the decoder ignores the codes, at both sides of its thresholds."""

from dataclasses import replace

import pytest

from tests.inspection.findings.evidence_builders import (
    find,
    make_evidence,
    make_settings,
    severities,
    suggested_changes,
    validations,
)
from vqtool.inspection.findings import diagnose


@pytest.mark.parametrize(("shuffled", "reported"), [(1.04, True), (1.06, False)])
def test_decoder_ignores_codes_below_5_percent_higher_loss(shuffled: float, reported: bool) -> None:
    metrics = {"validation/loss/unshuffled": 1.0, "validation/loss/shuffled": shuffled, "codebook/error": 0.5}
    assert severities(make_evidence(metrics=metrics)).get("decoder_ignores_codes") == ("severe" if reported else None)
    findings = diagnose(make_evidence(metrics=metrics, settings=make_settings()))
    assert [finding.changes[0].key for finding in findings] == ["training.steps"] * reported


def test_more_training_is_not_suggested_while_the_encoder_is_unstable() -> None:
    """The findings would suggest opposite changes of the learning rate; only that for the cause is suggested."""
    metrics = {"validation/loss/unshuffled": 1.0, "validation/loss/shuffled": 1.0, "codebook/error": 0.5}
    ignored = make_evidence(metrics=metrics, settings=make_settings())
    assert suggested_changes(ignored, "decoder_ignores_codes")["training.learning_rate"] == "0.003"
    diverging = validations("validation/loss/commitment", 1.0, 1.0, 2.0, 9.0)
    losses = {"validation/loss/reconstruction": [1.0, 0.8, 0.6, 0.4]}
    dropping = validations("codebook/usage", 0.9, 0.85, 0.85, 0.7, **losses)
    for history, name in ((diverging, "latents_diverging"), (dropping, "usage_dropping")):
        both = replace(ignored, history=history)
        assert suggested_changes(both, name)["training.learning_rate"] == "0.0003"
        changes = suggested_changes(both, "decoder_ignores_codes")
        assert not {"training.learning_rate", "training.steps"} & changes.keys()
        assert find(both, "decoder_ignores_codes").cause != find(ignored, "decoder_ignores_codes").cause
