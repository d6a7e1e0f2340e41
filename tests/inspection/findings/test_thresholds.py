"""Each finding on made-up evidence, at both sides of each of its thresholds."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from vqtool.config import RunSettings, cumulative_lr
from vqtool.inspection.evidence import Evidence
from vqtool.inspection.findings import diagnose
from vqtool.metrics.collisions import IdCounts
from vqtool.metrics.usage import usage_from_counts

MLP = {"kind": "mlp", "width": 8}


def settings(quantizer: dict[str, Any] | None = None, **blocks: Any) -> RunSettings:
    """Settings of a run, as they are in its folder."""
    inner = {"kind": "vector", "codebook_size": 16, "codebook_dim": 4}
    return RunSettings.model_validate(
        {
            "data": {"kind": "tensors", "path": "/data.npy"},
            "model": {"encoder": blocks.pop("encoder", MLP), "quantizer": quantizer or inner},
            "training": {"steps": 1000, "schedule": "constant", "warmup_steps": 0},
            **blocks,
        }
    )


def residual(**more: Any) -> dict[str, Any]:
    """A residual quantizer of two levels of 16 codes."""
    return {"kind": "residual", "levels": 2, "quantizer": {"kind": "vector", "codebook_size": 16}, **more}


def evidence(*counts: list[int], metrics: dict[str, float] | None = None, **more: Any) -> Evidence:
    """Of levels with these hits; of one of 16 codes with 20 each, where none are given."""
    levels = [usage_from_counts(torch.tensor(hits)) for hits in counts or [[20] * 16]]
    return Evidence(levels, metrics=metrics or {}, **more)


def names(found: Evidence) -> set[str]:
    """The names of all findings."""
    return {finding.name for finding in diagnose(found)}


def severities(found: Evidence) -> dict[str, str]:
    """Of each finding, by name."""
    return {finding.name: finding.severity for finding in diagnose(found)}


def history(tag: str, *values: float, **others: list[float]) -> list[dict[str, Any]]:
    """Validations at steps 100, 200, ..., with these figures."""
    return [
        {"step": 100 * (number + 1), tag: value, **{name: other[number] for name, other in others.items()}}
        for number, value in enumerate(values)
    ]


def test_nothing_is_found_where_all_is_well_or_nothing_known() -> None:
    assert diagnose(evidence()) == []
    assert diagnose(evidence(settings=settings())) == []
    assert diagnose(evidence([0] * 16)) == []
    assert diagnose(evidence([5])) == []


# A perplexity of 1 is none of the way to even use, one of K all of it: e codes of 31 in even use are (e - 1) / 30.
@pytest.mark.parametrize(("used", "collapsed"), [(1, True), (3, True), (4, False), (31, False)])
def test_collapse_is_a_tenth_of_even_use(used: int, collapsed: bool) -> None:
    assert ("collapse" in names(evidence([3000 // used] * used + [0] * (31 - used)))) == collapsed


def test_small_codebooks_do_not_collapse() -> None:
    assert "collapse" in names(evidence([400] + [0] * 7))
    assert "collapse" not in names(evidence([400] + [0] * 6))


@pytest.mark.parametrize(("tokens", "fires"), [(2, False), (19, False), (20, True)])
def test_a_few_tokens_on_one_code_are_no_collapse(tokens: int, fires: bool) -> None:
    assert ("collapse" in names(evidence([tokens] + [0] * 511))) == fires


@pytest.mark.parametrize(
    ("dead", "tokens", "severity"),
    [(2, 2000, None), (3, 2000, "warning"), (3, 1999, None), (50, 2000, "warning"), (51, 2000, "severe")],
)
def test_codes_are_dead_from_20_tokens_a_code_on(dead: int, tokens: int, severity: str | None) -> None:
    """Of 100 codes, 2 may be; more than 50 are severe."""
    alive = 100 - dead
    hits = [tokens // alive + (number < tokens % alive) for number in range(alive)]
    found = evidence([0] * dead + hits)
    assert found.levels[0].tokens == tokens
    assert severities(found).get("dead_codes") == severity


@pytest.mark.parametrize(
    ("metrics", "message", "cause"),
    [
        ({}, "10 of 20 codes have no hits (40 tokens per code)", "codes far from"),
        ({"codebook/never_hit": 10.0}, "; never hit in training: all of them", "most were initialised far"),
        (
            {"codebook/never_hit": 6.0, "codebook/last_hit": 1234.0},
            "training: 6, no longer hit: 4 (",
            "most were initialised",
        ),
        (
            {"codebook/never_hit": 4.0, "codebook/last_hit": 1234.0},
            "last hit at step 1,234 on average",
            "most were hit earlier",
        ),
    ],
)
def test_dead_codes_tell_when_they_were_hit(metrics: dict[str, float], message: str, cause: str) -> None:
    (found,) = [each for each in diagnose(evidence([80] * 10 + [0] * 10, metrics=metrics)) if each.name == "dead_codes"]
    assert message in found.message
    assert found.cause.startswith(cause)


@pytest.mark.parametrize(("never", "slower"), [(5.0, True), (6.0, False)])
def test_codes_that_are_lost_although_they_are_revived_are_lost_too_fast(never: float, slower: bool) -> None:
    revived = settings({"kind": "vector", "codebook_size": 16, "codebook_dim": 4, "dead_code_reset": {"min_hits": 1}})
    found = evidence([80] * 6 + [0] * 10, metrics={"codebook/never_hit": never}, settings=revived)
    assert ("training.learning_rate" in advice(found, "dead_codes")) == slower


@pytest.mark.parametrize(("size", "dead", "fires"), [(16, 1, False), (49, 1, False), (16, 2, True), (49, 2, True)])
def test_one_dead_code_is_nothing_to_mend(size: int, dead: int, fires: bool) -> None:
    assert ("dead_codes" in names(evidence([0] * dead + [60] * (size - dead)))) == fires


def advice(found: Evidence, name: str) -> dict[str, str]:
    """The changes that a finding advises: values by key."""
    (only,) = [each for each in diagnose(found) if each.name == name]
    return {change.key: change.value for change in only.changes}


SIZE = "model.quantizer.codebook_size"


@pytest.mark.parametrize(("used", "size"), [(250, None), (129, None), (128, "128"), (100, "128"), (40, "64")])
def test_no_fewer_codes_are_advised_than_are_in_use(used: int, size: str | None) -> None:
    many = settings({"kind": "vector", "codebook_size": 256, "codebook_dim": 4})
    found = evidence([6000 // used] * used + [0] * (256 - used), settings=many)
    assert advice(found, "dead_codes").get(SIZE) == size


def test_a_collapsed_codebook_does_not_say_how_many_codes_there_should_be() -> None:
    many = settings({"kind": "vector", "codebook_size": 256, "codebook_dim": 4})
    collapsed = evidence([3000, 3000] + [0] * 254, settings=many, metrics={"codebook/duplicates": 254.0})
    for name in ("collapse", "dead_codes", "duplicate_codes"):
        assert SIZE not in advice(collapsed, name)


def test_no_fewer_codes_are_advised_than_the_fullest_level_needs() -> None:
    """All levels have one size."""
    many = settings({"kind": "residual", "levels": 2, "quantizer": {"kind": "vector", "codebook_size": 256}})
    full, half = [60] * 250 + [0] * 6, [120] * 128 + [0] * 128
    figures = {"codebook/level_0/duplicates": 6.0, "codebook/level_1/duplicates": 256.0}
    for levels, metrics, size in (
        ((full, half), {}, None),
        ((half, half), {}, "128"),
        (([60] * 256, [60] * 256), figures, None),
        (([60] * 256, [60] * 256), dict.fromkeys(figures, 256.0), "128"),
    ):
        found = evidence(*levels, metrics=metrics, settings=many)
        changes = {change.value for each in diagnose(found) for change in each.changes if "size" in change.key}
        assert changes == ({size} if size else set())


@pytest.mark.parametrize(("duplicates", "size"), [(6, None), (120, None), (128, "64"), (48, None)])
def test_of_duplicates_half_are_left(duplicates: int, size: str | None) -> None:
    many = settings({"kind": "vector", "codebook_size": 128, "codebook_dim": 4})
    found = evidence([20] * 128, settings=many, metrics={"codebook/duplicates": float(duplicates)})
    assert advice(found, "duplicate_codes").get(SIZE) == size


@pytest.mark.parametrize(
    ("quantizer", "used", "key", "value"),
    [
        ({"kind": "fsq", "levels": [5, 5]}, 20, "levels", "[4, 5]"),
        ({"kind": "fsq", "levels": [5, 5]}, 21, "levels", None),
        ({"kind": "fsq", "levels": [8, 3]}, 12, "levels", "[4, 3]"),
        ({"kind": "lfq", "bits": 6}, 32, "bits", "5"),
        ({"kind": "lfq", "bits": 6}, 33, "bits", None),
        ({"kind": "bsq", "bits": 6}, 9, "bits", "4"),
    ],
)
def test_given_codes_that_are_dead_are_not_brought_back(
    quantizer: dict[str, Any], used: int, key: str, value: str | None
) -> None:
    """Nothing moves them: the encoder is to spread over them, or there are to be fewer."""
    size = {"levels": 24 if quantizer.get("levels") == [8, 3] else 25, "bits": 64}[key]
    metrics = {"codebook/never_hit": 1.0, "codebook/last_hit": 3.0}
    found = evidence([200] * used + [0] * (size - used), metrics=metrics, settings=settings(quantizer))
    assert advice(found, "dead_codes") == {
        "loss.entropy": "0.1",
        **({f"model.quantizer.{key}": value} if value else {}),
    }
    (dead,) = [each for each in diagnose(found) if each.name == "dead_codes"]
    assert "training" not in dead.message
    assert "codes are fixed" in dead.cause
    inner = settings({"kind": "residual", "levels": 2, "quantizer": quantizer})
    level = [200] * used + [0] * (size - used)
    (first, second) = diagnose(evidence(level, level, settings=inner))
    for each in (first, second):
        keys = [change.key for change in each.changes]
        assert keys == ["loss.entropy", *([f"model.quantizer.quantizer.{key}"] if value else [])]


def test_an_encoder_that_gives_one_value_is_told_to_spread() -> None:
    given = settings({"kind": "fsq", "levels": [5, 5]}, loss={"entropy": 0.2})
    found = evidence([1000] + [0] * 24, settings=given)
    for name in ("collapse", "dead_codes", "dominant_code"):
        assert advice(found, name) == {"loss.entropy": "0.6"}
    assert {each.name: each.cause for each in diagnose(found)}["collapse"].startswith("the encoder maps all")


@pytest.mark.parametrize(("tokens", "fires"), [(99, False), (100, True)])
def test_the_share_of_a_code_takes_a_hundred_tokens_to_know(tokens: int, fires: bool) -> None:
    found = evidence([40, *[4] * 14, tokens - 96])
    assert found.levels[0].tokens == tokens
    assert ("dominant_code" in names(found)) == fires


@pytest.mark.parametrize(("share", "fires"), [(0.30, False), (0.31, True)])
def test_a_code_may_have_three_tenths(share: float, fires: bool) -> None:
    most = round(1000 * share)
    others = [(1000 - most) // 10] * 9
    found = evidence([most, *others, 1000 - most - sum(others)])
    assert ("dominant_code" in names(found)) == fires


def test_a_dominant_code_is_worth_a_note_where_the_others_are_in_even_use() -> None:
    assert severities(evidence([4000] + [100] * 15))["dominant_code"] == "note"
    assert severities(evidence([4000, 1000] + [5] * 14))["dominant_code"] == "warning"


@pytest.mark.parametrize(("others", "fires"), [(1.04, True), (1.06, False)])
def test_a_decoder_that_ignores_codes(others: float, fires: bool) -> None:
    metrics = {"validation/loss/unshuffled": 1.0, "validation/loss/shuffled": others, "codebook/error": 0.5}
    assert severities(evidence(metrics=metrics)).get("decoder_ignores_codes") == ("severe" if fires else None)
    (found, *_) = diagnose(evidence(metrics=metrics, settings=settings())) or [None]
    assert found is None or found.changes[0].key == "training.steps"


# A code of 4 bits in 4 dimensions: the best one for a Gaussian spreads sqrt(1 - 16^(-2/4)) = 0.866 as far.
@pytest.mark.parametrize(("spread", "fires"), [(0.28, True), (0.30, False), (1.99, False), (2.01, True)])
def test_scales_that_do_not_match(spread: float, fires: bool) -> None:
    found = evidence(metrics={"codebook/spread": spread}, settings=settings())
    assert ("scale_mismatch" in names(found)) == fires


@pytest.mark.parametrize(("outside", "fires"), [(0.0, False), (1.0, False), (2.0, True)])
def test_codes_outside_are_more_than_one_in_a_hundred(outside: float, fires: bool) -> None:
    assert ("outlier_codes" in names(evidence([20] * 100, metrics={"codebook/outside": outside}))) == fires


@pytest.mark.parametrize(
    ("size", "duplicates", "fires"), [(16, 1, False), (16, 2, True), (200, 4, False), (200, 5, True)]
)
def test_duplicates_are_two_and_more_than_one_in_fifty(size: int, duplicates: int, fires: bool) -> None:
    found = evidence([20] * size, metrics={"codebook/duplicates": float(duplicates)})
    assert ("duplicate_codes" in names(found)) == fires


@pytest.mark.parametrize(
    ("moves", "fires"),
    [((5.0, 5.0, 9e-4), True), ((5.0, 5.0, 1.1e-3), False), ((5.0, 9e-4, 2e-3), False), ((9e-4,), False)],
)
def test_a_codebook_stands_still_over_a_hundred_steps(moves: tuple[float, ...], fires: bool) -> None:
    found = evidence(settings=settings(), history=history("codebook/movement", *moves))
    assert ("codebook_frozen" in names(found)) == fires
    # Averages of latents that no network moves may rest.
    assert "codebook_frozen" not in names(replace(found, settings=settings(encoder={"kind": "identity"})))


@pytest.mark.parametrize("every", [1, 3, 25, 100, 500])
@pytest.mark.parametrize(("moved", "fires"), [(9e-4, True), (1.1e-3, False)])
def test_how_often_one_validates_does_not_make_codes_stand_still(every: int, moved: float, fires: bool) -> None:
    """Codes that move so far in a hundred steps, or in one interval that is longer, move far less in a few."""
    intervals = max(1, math.ceil(100 / every))
    course = [
        {"step": every * number, "codebook/movement": moved / intervals} for number in range(1, 2 * intervals + 2)
    ]
    assert ("codebook_frozen" in names(evidence(settings=settings(), history=course))) == fires
    assert "codebook_frozen" not in names(evidence(settings=settings(), history=course[:intervals]))


def test_codes_whose_movement_is_not_known_do_not_stand_still() -> None:
    course = history("codebook/movement", 1e-5, 1e-5, 1e-5)
    del course[-1]["codebook/movement"]
    assert names(evidence(settings=settings(), history=course)) == set()


def test_a_codebook_may_rest_while_the_learning_rate_is_low() -> None:
    cosine = settings(training={"steps": 300, "schedule": "cosine", "warmup_steps": 0})
    still = history("codebook/movement", 1.0, 1.0, 1e-5)
    assert names(evidence(settings=cosine, history=still)) == set()
    stood = history("codebook/movement", 1.0, 1e-5, 1.0)
    assert names(evidence(settings=cosine, history=stood)) == {"codebook_frozen"}
    warming = settings(training={"steps": 9000, "schedule": "constant", "warmup_steps": 2100})
    slow = history("codebook/movement", 1e-5, 1e-5, 1e-5)  # a tenth of the rate is reached at step 210
    assert names(evidence(settings=warming, history=slow)) == set()
    assert "codebook_frozen" in names(evidence(settings=settings(), history=slow))


def test_a_single_code_is_no_fault() -> None:
    figures = {"outside": 0.0, "duplicates": 0.0, "spread": 0.0, "error": 1.0, "halving": 1.0, "never_hit": 0.0}
    metrics = {f"codebook/{name}": value for name, value in figures.items()}
    metrics |= {"validation/loss/unshuffled": 1.0, "validation/loss/shuffled": 1.0}
    one = settings({"kind": "vector", "codebook_size": 1, "codebook_dim": 4})
    assert diagnose(evidence([500], metrics=metrics, settings=one, tokens=20)) == []
    (found,) = diagnose(evidence([500], metrics=metrics, settings=one, tokens=19))
    assert found.message == "1 code and 19 training tokens: 19.0 tokens per code"
    assert found.changes == ()
    (far,) = diagnose(evidence(metrics={"codebook/outside": 1.0}))
    assert far.message == "1 of 16 codes lies far from all latents"


UNEVEN = [400] * 8 + [1] * 24  # an entropy of 0.63 of ln 32


@pytest.mark.parametrize(("soft", "hits", "fires"), [(0.96, UNEVEN, 1), (0.94, UNEVEN, 0), (0.96, [40] * 32, 0)])
def test_a_temperature_that_is_hot(soft: float, hits: list[int], fires: bool) -> None:
    weighed = settings(loss={"entropy": 0.1})
    found = evidence(hits, metrics={"codebook/soft_entropy": soft}, settings=weighed)
    assert ("temperature_too_high" in names(found)) == fires
    assert "temperature_too_high" not in names(replace(found, settings=settings()))


@pytest.mark.parametrize(
    ("sure", "error", "fires"), [(9e-4, 6.0, True), (2e-3, 6.0, False), (9e-4, 4.0, False)]
)  # a temperature of 1 is a sixth, or a fourth, of the error
def test_a_temperature_that_is_cold(sure: float, error: float, fires: bool) -> None:
    metrics = {"codebook/sample_entropy": sure, "validation/loss/commitment": error}
    found = evidence(metrics=metrics, settings=settings(loss={"entropy": 0.1}))
    assert ("temperature_too_low" in names(found)) == fires
    assert "temperature_too_low" not in names(replace(found, settings=settings()))


@pytest.mark.parametrize(
    ("last", "error", "fires"),
    [(5.1, 0.2, True), (4.9, 0.2, False), (3.1, 0.31, True), (2.9, 0.31, False), (3.1, 0.29, False)],
)
def test_an_encoder_runs_away(last: float, error: float, fires: bool) -> None:
    """Five times the commitment, or three times where the part that is lost is half as large again."""
    errors = {"codebook/error": [0.2, 0.2, 0.2, error]}
    found = evidence(history=history("validation/loss/commitment", 1.0, 1.0, 2.0, last, **errors))
    assert ("latents_diverging" in names(found)) == fires
    assert "latents_diverging" not in names(replace(found, history=found.history[1:]))


@pytest.mark.parametrize(("halfway", "fires"), [(2.4, True), (2.6, False)])
def test_a_commitment_that_levels_off_is_no_running_away(halfway: float, fires: bool) -> None:
    """It doubles, or does not, from step 200 to step 400."""
    found = evidence(history=history("validation/loss/commitment", 0.1, halfway, 4.9, 5.0))
    assert ("latents_diverging" in names(found)) == fires


def course(commitment: Callable[[float], float], every: int = 1) -> list[dict[str, Any]]:
    """Validations of the first 300 steps, with what commitment is after some of them."""
    return [{"step": step, "validation/loss/commitment": commitment(step)} for step in range(every, 301, every)]


@pytest.mark.parametrize("every", [1, 2, 25])
def test_how_often_one_validates_does_not_make_an_encoder_run_away(every: int) -> None:
    """In healthy runs commitment grows by ten times, and has done so after a hundred steps."""
    levelled = course(lambda step: 0.03 + 0.28 / (1 + math.exp((45 - step) / 12)), every)
    endless = course(lambda step: 0.03 + 1e-4 * step**1.5, every)
    for last in range(4, len(levelled) + 1):
        assert names(evidence(history=levelled[:last], settings=settings())) == set()
    for last in range(math.ceil(200 / every), len(endless) + 1):
        assert names(evidence(history=endless[:last], settings=settings())) == {"latents_diverging"}


@pytest.mark.parametrize(("times", "fires"), [(24, False), (26, True)])
@pytest.mark.parametrize("steps", [150, 1000])
def test_as_a_run_begins_commitment_grows_in_any(times: float, fires: bool, steps: int) -> None:
    """Half of the way to step 150 went by before step 100, and whether that run goes on does not matter."""
    run = settings(training={"steps": steps, "schedule": "constant", "warmup_steps": 0})
    begins = course(lambda step: 1.0 if step < 80 else times)[:150]
    assert ("latents_diverging" in names(evidence(history=begins, settings=run))) == fires


def test_an_encoder_that_a_falling_learning_rate_stops_has_run_away_all_the_same() -> None:
    """Half of its way went by long before half of its steps."""
    cosine = settings(training={"steps": 300, "schedule": "cosine", "warmup_steps": 5})
    away = course(lambda step: 0.03 + 1e-4 * cumulative_lr(cosine.training, round(step)) ** 2)
    assert away[-1]["validation/loss/commitment"] < 2 * away[149]["validation/loss/commitment"]
    assert names(evidence(history=away, settings=cosine)) == {"latents_diverging"}


@pytest.mark.parametrize(
    ("step", "warmup", "steps", "young"),
    [
        *[(99, 0, 1000, True), (100, 0, 1000, False), (299, 300, 1000, True), (300, 300, 1000, False)],
        *[(49, 0, 50, True), (50, 0, 50, False), (50, 300, 50, False)],
    ],
)
def test_a_young_run_is_no_sick_run(step: int, warmup: int, steps: int, young: bool) -> None:
    """Until a hundred steps, and those of warm-up, or all that there are, only what no step can change is found."""
    metrics = {"validation/loss/unshuffled": 1.0, "validation/loss/shuffled": 1.0, "codebook/spread": 9.0}
    training = {"steps": steps, "warmup_steps": warmup}
    found = evidence(
        [400] + [0] * 15,
        metrics=metrics,
        history=[{"step": step}],
        settings=settings(training=training),
        tokens=40,
        distinct=IdCounts(400, 1),
    )
    sick = {"codebook_too_large", "collapse", "dead_codes", "decoder_ignores_codes", "dominant_code", "scale_mismatch"}
    assert names(found) == ({"codebook_too_large"} if young else sick)
    best = replace(found, history=[{"step": 1}], later=[{"step": step}])
    assert names(best) == names(found)
    assert found.young_until == best.young_until == (min(max(100, warmup), steps) if young else None)


@pytest.mark.parametrize(("tokens", "fires"), [(99, False), (100, True)])
def test_the_commitment_of_a_few_tokens_is_no_trend(tokens: int, fires: bool) -> None:
    course = history("validation/loss/commitment", 1.0, 1.0, 2.0, 9.0)
    assert ("latents_diverging" in names(evidence([tokens - 60, 20, 20, 20], history=course))) == fires


def test_a_decoder_is_not_hurried_while_its_latents_run_away() -> None:
    """Of opposite advice on the learning rate, that of the cause is right."""
    metrics = {"validation/loss/unshuffled": 1.0, "validation/loss/shuffled": 1.0, "codebook/error": 0.5}
    ignored = evidence(metrics=metrics, settings=settings())
    assert advice(ignored, "decoder_ignores_codes")["training.learning_rate"] == "0.003"
    away = history("validation/loss/commitment", 1.0, 1.0, 2.0, 9.0)
    losses = {"validation/loss/reconstruction": [1.0, 0.8, 0.6, 0.4]}
    falling = history("codebook/usage", 0.9, 0.85, 0.85, 0.7, **losses)
    for course, name in ((away, "latents_diverging"), (falling, "usage_dropping")):
        both = replace(ignored, history=course)
        assert advice(both, name)["training.learning_rate"] == "0.0003"
        assert not {"training.learning_rate", "training.steps"} & advice(both, "decoder_ignores_codes").keys()
        (held,) = [each for each in diagnose(both) if each.name == "decoder_ignores_codes"]
        assert held.cause.endswith("first make the encoder stable")


def test_an_encoder_that_ran_away_after_the_best_validation_is_found() -> None:
    course = history("validation/loss/commitment", 1.0, 1.0, 20.0, 50.0)
    assert names(evidence(history=course[:2], later=course[2:])) == {"latents_diverging"}
    back = history("validation/loss/commitment", 1.0, 50.0, 20.0, 8.0)
    assert names(evidence(history=back)) == set()


def test_ids_beyond_what_a_float_counts_are_no_trouble() -> None:
    hits = [6400 // 256] * 256
    found = evidence(hits, hits, distinct=IdCounts(100, 80), settings=settings(residual()))
    assert "collisions" in names(found)


@pytest.mark.parametrize(("usage", "loss", "fires"), [(0.79, 0.4, True), (0.81, 0.4, False), (0.79, 1.1, False)])
def test_usage_falls_while_reconstruction_improves(usage: float, loss: float, fires: bool) -> None:
    losses = {"validation/loss/reconstruction": [1.0, 0.8, 0.6, loss]}
    found = evidence(history=history("codebook/usage", 0.9, 0.85, 0.85, usage, **losses))
    assert ("usage_dropping" in names(found)) == fires
    revived = {"kind": "vector", "codebook_size": 16, "dead_code_reset": {"min_hits": 1}}
    for quantizer, words in (
        (revived, "than they are reset"),
        ({**revived, "dead_code_reset": None}, "are not reset"),
    ):
        for falls in diagnose(replace(found, settings=settings(quantizer))):
            assert words in falls.cause
            assert ("model.quantizer.dead_code_reset" in {change.key for change in falls.changes}) == (
                "not reset" in words
            )


@pytest.mark.parametrize(("left", "fires"), [(0.94, False), (0.96, True)])
def test_a_weak_level(left: float, fires: bool) -> None:
    metrics = {"codebook/level_0/error": 0.97, "codebook/level_1/error": left}
    found = evidence([20] * 16, [20] * 16, metrics=metrics, settings=settings(residual()))
    assert ("weak_level" in names(found)) == fires


@pytest.mark.parametrize(
    ("errors", "weak", "fewer"),
    [
        ((0.5, 0.96, 0.97, 0.5, 0.96, 0.97), [1, 2, 4, 5], True),
        ((0.97, 0.5, 0.97, 0.97, 0.5, 0.96), [2, 5], True),
        ((0.5, 0.96, 0.5, 0.5, 0.96, 0.5), [1, 4], False),
        ((0.5, 0.5, 0.97, 0.5, 0.5, 0.5), [2], False),
    ],
)
def test_weak_levels_of_a_product_are_those_of_each_group(
    errors: tuple[float, ...], weak: list[int], fewer: bool
) -> None:
    """As all groups have as many levels, and those behind go with one, fewer are advised where no group needs more."""
    metrics = {f"codebook/level_{number}/error": error for number, error in enumerate(errors)}
    product = settings({"kind": "product", "groups": 2, "quantizer": residual(levels=3)})
    found = diagnose(evidence(*[[20] * 16] * 6, metrics=metrics, settings=product))
    assert [finding.evidence["level"] for finding in found] == weak
    key = "model.quantizer.quantizer.levels"
    for finding in found:
        changes = {change.key: change.value for change in finding.changes}
        assert changes == ({key: str(finding.evidence["level"] % 3)} if fewer else {})


def test_a_product_of_residual_quantizers_gets_more_levels_in_each_group() -> None:
    product = settings({"kind": "product", "groups": 2, "quantizer": residual()})
    key = "model.quantizer.quantizer.levels"
    same = evidence(*[[60] * 16] * 4, distinct=IdCounts(960, 480), settings=product)
    assert advice(same, "collisions") == {key: "3"}
    figures = {"error": 0.4, "halving": 1.8}
    metrics = {f"codebook/level_{level}/{name}": value for level in range(4) for name, value in figures.items()}
    full = replace(same, distinct=None, metrics=metrics)
    assert advice(full, "codebook_saturated") == {key: "3"}
    (found,) = diagnose(full)
    assert found.evidence["error"] == pytest.approx(0.16)  # of each group, what two levels lose


# Of 1,000 rows in 16² ids, chance has 1 - 256 (1 - (255 / 256)^1000) / 1000 = 74.9% collide; in 16⁴, 0.8%.
@pytest.mark.parametrize(
    ("positions", "ids", "fires"), [(1, 100, False), (2, 890, True), (2, 910, False), (2, 989, False)]
)
def test_collisions_beyond_the_birthday_bound(positions: int, ids: int, fires: bool) -> None:
    hits = [1000 * positions // 16] * 15
    hits.append(1000 * positions - sum(hits))
    found = evidence(hits, hits, distinct=IdCounts(1000, ids), settings=settings(residual()))
    assert ("collisions" in names(found)) == fires


@pytest.mark.parametrize(("tokens", "fires"), [(319, True), (320, False)])
def test_a_code_needs_20_training_tokens(tokens: int, fires: bool) -> None:
    found = evidence(metrics={"codebook/spread": 1.0}, tokens=tokens)
    assert ("codebook_too_large" in names(found)) == fires
    assert "codebook_too_large" not in names(evidence(tokens=tokens))  # given codes need no data


@pytest.mark.parametrize(
    ("halving", "error", "fires"),
    [(1.8, 0.11, True), (1.7, 0.11, False), (1.8, 0.09, False), (1.1, 0.51, True), (1.04, 0.51, False)],
)
def test_a_full_codebook(halving: float, error: float, fires: bool) -> None:
    metrics = {"codebook/halving": halving, "codebook/error": error}
    assert ("codebook_saturated" in names(evidence(metrics=metrics))) == fires
    assert "codebook_saturated" not in names(evidence([200, 100] + [20] * 14, metrics=metrics))


def test_levels_that_share_a_codebook_are_counted_together() -> None:
    """What the first level leaves aside, the second uses."""
    first, second = [100] * 8 + [0] * 8, [0] * 8 + [100] * 8
    assert "dead_codes" in names(evidence(first, second, settings=settings(residual())))
    assert names(evidence(first, second, settings=settings(residual(shared=True)))) == set()


@pytest.mark.parametrize(("tokens", "fires"), [(159, True), (160, False)])
def test_a_shared_codebook_learns_from_the_tokens_of_all_its_levels(tokens: int, fires: bool) -> None:
    metrics = {"codebook/level_0/spread": 1.0, "codebook/level_1/spread": 1.0}
    hits = [[20] * 16, [20] * 16]
    shared = evidence(*hits, metrics=metrics, tokens=tokens, settings=settings(residual(shared=True)))
    assert ("codebook_too_large" in names(shared)) == fires
    assert "codebook_too_large" in names(replace(shared, settings=settings(residual())))


def test_a_shared_codebook_is_judged_once_by_the_figures_of_all_its_levels() -> None:
    figures = {"outside": 3.0, "duplicates": 5.0, "spread": 9.0, "movement": 0.0, "error": 0.5}
    metrics = {f"codebook/level_{level}/{name}": value for level in (0, 1) for name, value in figures.items()}
    course = [{"step": step, **metrics} for step in (100, 200, 300)]
    hits = [[20] * 16, [20] * 16]
    shared = evidence(*hits, metrics=metrics, history=course, settings=settings(residual(shared=True)))
    found = diagnose(shared)
    expected = {"outlier_codes", "duplicate_codes", "scale_mismatch", "codebook_frozen"}
    assert sorted(each.name for each in found) == sorted(expected)
    assert not any("level" in each.message for each in found)
    apart = diagnose(replace(shared, settings=settings(residual())))
    assert sorted(each.name for each in apart) == sorted([*expected, *expected])
    assert sum("of level 1" in each.message for each in apart) == 4


def test_an_index_file_does_not_say_whether_its_levels_share_a_codebook() -> None:
    first, second = [100] * 12 + [0] * 12, [0] * 11 + [100] * 13
    file = evidence(first, second)
    assert severities(file) == {"dead_codes": "warning"}
    (dead, _) = diagnose(file)
    assert dead.cause.endswith("if they do, that codebook has 0 dead codes")
    few, many = [4000] + [0] * 23, [200] * 24
    assert severities(evidence(few, many))["collapse"] == "warning"
    assert severities(evidence(few, few)) == {"collapse": "severe", "dead_codes": "severe", "dominant_code": "warning"}
    assert severities(evidence(few, [200] * 23)) == {  # of other sizes, they share none
        "collapse": "severe",
        "dead_codes": "severe",
        "dominant_code": "warning",
    }
