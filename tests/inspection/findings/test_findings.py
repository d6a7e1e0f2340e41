"""All findings together: healthy and unknown evidence, a single code, early training."""

from dataclasses import replace

import pytest

from tests.cli import mentions
from tests.inspection.findings.evidence_builders import finding_names, make_evidence, make_settings
from vqtool.inspection.findings import diagnose
from vqtool.metrics.collisions import IdCounts


def test_no_findings_if_healthy_or_unknown() -> None:
    assert diagnose(make_evidence()) == []
    assert diagnose(make_evidence(settings=make_settings())) == []
    assert diagnose(make_evidence([0] * 16)) == []
    assert diagnose(make_evidence([5])) == []


def test_single_code_is_only_reported_as_too_large() -> None:
    values = {"outside": 0.0, "duplicates": 0.0, "spread": 0.0, "error": 1.0, "halving": 1.0, "never_hit": 0.0}
    metrics = {f"codebook/{name}": value for name, value in values.items()}
    metrics |= {"validation/loss/unshuffled": 1.0, "validation/loss/shuffled": 1.0}
    single_code = make_settings({"kind": "vector", "codebook_size": 1, "codebook_dim": 4})
    assert diagnose(make_evidence([500], metrics=metrics, settings=single_code, training_tokens=20)) == []
    (too_large,) = diagnose(make_evidence([500], metrics=metrics, settings=single_code, training_tokens=19))
    assert (too_large.name, too_large.severity) == ("codebook_too_large", "warning")
    assert too_large.evidence == {"level": 0, "tokens_per_code": 19.0, "codebook_size": 1}
    assert mentions(too_large.message, "1 code ... 19 training tokens")
    assert too_large.changes == ()


@pytest.mark.parametrize(
    ("step", "warmup", "steps", "early"),
    [
        *[(99, 0, 1000, True), (100, 0, 1000, False), (299, 300, 1000, True), (300, 300, 1000, False)],
        *[(49, 0, 50, True), (50, 0, 50, False), (50, 300, 50, False)],
    ],
)
def test_early_run_reports_only_codebook_too_large(step: int, warmup: int, steps: int, early: bool) -> None:
    """Before step 100, or the end of warm-up if that is later, or the end of the run if that is earlier."""
    metrics = {"validation/loss/unshuffled": 1.0, "validation/loss/shuffled": 1.0, "codebook/spread": 9.0}
    training = {"steps": steps, "warmup_steps": warmup}
    evidence = make_evidence(
        [400] + [0] * 15,
        metrics=metrics,
        history=[{"step": step}],
        settings=make_settings(training=training),
        training_tokens=40,
        distinct=IdCounts(400, 1),
    )
    late = {"codebook_too_large", "collapse", "dead_codes", "decoder_ignores_codes", "dominant_code", "scale_mismatch"}
    assert finding_names(evidence) == ({"codebook_too_large"} if early else late)
    best_at_step_1 = replace(evidence, history=[{"step": 1}], later=[{"step": step}])
    assert finding_names(best_at_step_1) == finding_names(evidence)
    assert evidence.early_until == best_at_step_1.early_until == (min(max(100, warmup), steps) if early else None)
