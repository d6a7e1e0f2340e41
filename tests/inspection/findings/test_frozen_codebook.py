"""Finding that the codebook is frozen, at both sides of its thresholds."""

import math
from dataclasses import replace

import pytest

from tests.inspection.findings.evidence_builders import finding_names, make_evidence, make_settings, validations


@pytest.mark.parametrize(
    ("movements", "reported"),
    [((5.0, 5.0, 9e-4), True), ((5.0, 5.0, 1.1e-3), False), ((5.0, 9e-4, 2e-3), False), ((9e-4,), False)],
)
def test_codebook_is_frozen_if_it_does_not_move_over_100_steps(movements: tuple[float, ...], reported: bool) -> None:
    evidence = make_evidence(settings=make_settings(), history=validations("codebook/movement", *movements))
    assert ("codebook_frozen" in finding_names(evidence)) == reported
    # EMA codes converge if an identity encoder keeps the latents fixed.
    fixed_latents = replace(evidence, settings=make_settings(encoder={"kind": "identity"}))
    assert "codebook_frozen" not in finding_names(fixed_latents)


@pytest.mark.parametrize("every", [1, 3, 25, 100, 500])
@pytest.mark.parametrize(("moved", "reported"), [(9e-4, True), (1.1e-3, False)])
def test_codebook_frozen_does_not_depend_on_the_validation_interval(every: int, moved: float, reported: bool) -> None:
    """`moved` is the movement over 100 steps, or over one interval if that is longer."""
    intervals = max(1, math.ceil(100 / every))
    history = [
        {"step": every * number, "codebook/movement": moved / intervals} for number in range(1, 2 * intervals + 2)
    ]
    assert ("codebook_frozen" in finding_names(make_evidence(settings=make_settings(), history=history))) == reported
    assert "codebook_frozen" not in finding_names(make_evidence(settings=make_settings(), history=history[:intervals]))


def test_codebook_with_unknown_movement_is_not_frozen() -> None:
    history = validations("codebook/movement", 1e-5, 1e-5, 1e-5)
    del history[-1]["codebook/movement"]
    assert finding_names(make_evidence(settings=make_settings(), history=history)) == set()


def test_codebook_may_be_at_rest_at_a_low_learning_rate() -> None:
    cosine = make_settings(training={"steps": 300, "schedule": "cosine", "warmup_steps": 0})
    at_rest_late = validations("codebook/movement", 1.0, 1.0, 1e-5)
    assert finding_names(make_evidence(settings=cosine, history=at_rest_late)) == set()
    at_rest_early = validations("codebook/movement", 1.0, 1e-5, 1.0)
    assert finding_names(make_evidence(settings=cosine, history=at_rest_early)) == {"codebook_frozen"}
    long_warmup = make_settings(training={"steps": 9000, "schedule": "constant", "warmup_steps": 2100})
    frozen = validations(
        "codebook/movement", 1e-5, 1e-5, 1e-5
    )  # a tenth of the maximum learning rate is reached at step 210
    assert finding_names(make_evidence(settings=long_warmup, history=frozen)) == set()
    assert "codebook_frozen" in finding_names(make_evidence(settings=make_settings(), history=frozen))
