"""Findings about the hits per code, at both sides of their thresholds."""

from typing import Any

import pytest

from tests.cli import mentions
from tests.inspection.findings.evidence_builders import (
    find,
    finding_names,
    make_evidence,
    make_settings,
    residual_block,
    severities,
    suggested_changes,
)
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings import diagnose


# The relative perplexity of uniform usage of `used` codes of 31 is (used - 1) / 30: 0.067 for 3 codes, 0.1 for 4.
@pytest.mark.parametrize(("used", "collapsed"), [(1, True), (3, True), (4, False), (31, False)])
def test_collapse_is_reported_below_a_tenth_of_uniform_usage(used: int, collapsed: bool) -> None:
    assert ("collapse" in finding_names(make_evidence([3000 // used] * used + [0] * (31 - used)))) == collapsed


def test_collapse_needs_8_codes() -> None:
    assert "collapse" in finding_names(make_evidence([400] + [0] * 7))
    assert "collapse" not in finding_names(make_evidence([400] + [0] * 6))


@pytest.mark.parametrize(("tokens", "reported"), [(2, False), (19, False), (20, True)])
def test_collapse_needs_20_tokens(tokens: int, reported: bool) -> None:
    assert ("collapse" in finding_names(make_evidence([tokens] + [0] * 511))) == reported


@pytest.mark.parametrize(
    ("dead", "tokens", "severity"),
    [(2, 2000, None), (3, 2000, "warning"), (3, 1999, None), (50, 2000, "warning"), (51, 2000, "severe")],
)
def test_dead_codes_need_20_tokens_per_code(dead: int, tokens: int, severity: str | None) -> None:
    """Up to 2 of 100 codes may be dead; more than 50 are severe."""
    alive = 100 - dead
    hits = [tokens // alive + (number < tokens % alive) for number in range(alive)]
    evidence = make_evidence([0] * dead + hits)
    assert evidence.levels[0].tokens == tokens
    assert severities(evidence).get("dead_codes") == severity


def ten_dead_codes(never_hit: float | None, last_hit: float | None) -> Finding:
    """Return the finding of 10 dead codes of 20; None: the metric is not logged."""
    logged = {"codebook/never_hit": never_hit, "codebook/last_hit": last_hit}
    metrics = {tag: value for tag, value in logged.items() if value is not None}
    return find(make_evidence([80] * 10 + [0] * 10, metrics=metrics), "dead_codes")


@pytest.mark.parametrize(
    ("never_hit", "last_hit", "message"),
    [
        (None, None, "10 of 20 ... 40 tokens per code"),
        (10.0, None, "10 of 20 ... 40 tokens per code ... never hit ... all"),
        (6.0, 1234.0, "10 of 20 ... never hit ... 6 ... 4 ... step 1,234"),
        (4.0, 1234.0, "10 of 20 ... never hit ... 4 ... 6 ... step 1,234"),
    ],
)
def test_dead_codes_report_when_they_were_last_hit(
    never_hit: float | None, last_hit: float | None, message: str
) -> None:
    dead = ten_dead_codes(never_hit, last_hit)
    expected = {"level": 0, "dead": 10, "never_hit": never_hit, "last_hit": last_hit, "tokens": 800}
    assert dead.evidence == expected
    assert mentions(dead.message, message)


def test_cause_of_dead_codes_depends_on_whether_most_were_ever_hit() -> None:
    unknown, most_never_hit, most_hit = (ten_dead_codes(never_hit, 1234.0).cause for never_hit in (None, 6.0, 4.0))
    assert ten_dead_codes(10.0, None).cause == most_never_hit
    assert len({unknown, most_never_hit, most_hit}) == 3
    assert "initialised" in most_never_hit
    assert "initialised" not in most_hit


@pytest.mark.parametrize(("never_hit", "suggested"), [(5.0, True), (6.0, False)])
def test_lower_learning_rate_is_suggested_if_codes_die_despite_resets(never_hit: float, suggested: bool) -> None:
    with_reset = make_settings(
        {"kind": "vector", "codebook_size": 16, "codebook_dim": 4, "dead_code_reset": {"min_hits": 1}}
    )
    evidence = make_evidence([80] * 6 + [0] * 10, metrics={"codebook/never_hit": never_hit}, settings=with_reset)
    assert ("training.learning_rate" in suggested_changes(evidence, "dead_codes")) == suggested


@pytest.mark.parametrize(("size", "dead", "reported"), [(16, 1, False), (49, 1, False), (16, 2, True), (49, 2, True)])
def test_single_dead_code_is_not_reported(size: int, dead: int, reported: bool) -> None:
    assert ("dead_codes" in finding_names(make_evidence([0] * dead + [60] * (size - dead)))) == reported


CODEBOOK_SIZE = "model.quantizer.codebook_size"


@pytest.mark.parametrize(("used", "size"), [(250, None), (129, None), (128, "128"), (100, "128"), (40, "64")])
def test_suggested_codebook_size_holds_the_used_codes(used: int, size: str | None) -> None:
    settings = make_settings({"kind": "vector", "codebook_size": 256, "codebook_dim": 4})
    evidence = make_evidence([6000 // used] * used + [0] * (256 - used), settings=settings)
    assert suggested_changes(evidence, "dead_codes").get(CODEBOOK_SIZE) == size


def test_no_codebook_size_is_suggested_for_a_collapsed_codebook() -> None:
    settings = make_settings({"kind": "vector", "codebook_size": 256, "codebook_dim": 4})
    collapsed = make_evidence([3000, 3000] + [0] * 254, settings=settings, metrics={"codebook/duplicates": 254.0})
    for name in ("collapse", "dead_codes", "duplicate_codes"):
        assert CODEBOOK_SIZE not in suggested_changes(collapsed, name)


def test_suggested_codebook_size_holds_the_used_codes_of_every_level() -> None:
    """All levels have the same codebook size."""
    settings = make_settings({"kind": "residual", "levels": 2, "quantizer": {"kind": "vector", "codebook_size": 256}})
    full, half = [60] * 250 + [0] * 6, [120] * 128 + [0] * 128
    duplicates = {"codebook/level_0/duplicates": 6.0, "codebook/level_1/duplicates": 256.0}
    for levels, metrics, size in (
        ((full, half), {}, None),
        ((half, half), {}, "128"),
        (([60] * 256, [60] * 256), duplicates, None),
        (([60] * 256, [60] * 256), dict.fromkeys(duplicates, 256.0), "128"),
    ):
        evidence = make_evidence(*levels, metrics=metrics, settings=settings)
        changes = [change for finding in diagnose(evidence) for change in finding.changes]
        assert {change.value for change in changes if "size" in change.key} == ({size} if size else set())


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
def test_dead_fixed_codes_suggest_entropy_loss_or_fewer_codes(
    quantizer: dict[str, Any], used: int, key: str, value: str | None
) -> None:
    size = {"levels": 24 if quantizer.get("levels") == [8, 3] else 25, "bits": 64}[key]
    metrics = {"codebook/never_hit": 1.0, "codebook/last_hit": 3.0}
    hits = [200] * used + [0] * (size - used)
    evidence = make_evidence(hits, metrics=metrics, settings=make_settings(quantizer))
    assert suggested_changes(evidence, "dead_codes") == {
        "loss.entropy": "0.1",
        **({f"model.quantizer.{key}": value} if value else {}),
    }
    dead = find(evidence, "dead_codes")
    assert (dead.evidence["never_hit"], dead.evidence["last_hit"]) == (None, None)
    assert "fixed" in dead.cause
    nested = make_settings({"kind": "residual", "levels": 2, "quantizer": quantizer})
    findings = diagnose(make_evidence(hits, hits, settings=nested))
    assert len(findings) == 2
    for finding in findings:
        keys = [change.key for change in finding.changes]
        assert keys == ["loss.entropy", *([f"model.quantizer.quantizer.{key}"] if value else [])]


def test_collapse_of_fixed_codes_suggests_entropy_loss() -> None:
    fixed_codes = make_settings({"kind": "fsq", "levels": [5, 5]}, loss={"entropy": 0.2})
    evidence = make_evidence([1000] + [0] * 24, settings=fixed_codes)
    for name in ("collapse", "dead_codes", "dominant_code"):
        assert suggested_changes(evidence, name) == {"loss.entropy": "0.6"}
    assert "encoder" in find(evidence, "collapse").cause


@pytest.mark.parametrize(("tokens", "reported"), [(99, False), (100, True)])
def test_dominant_code_needs_100_tokens(tokens: int, reported: bool) -> None:
    evidence = make_evidence([40, *[4] * 14, tokens - 96])
    assert evidence.levels[0].tokens == tokens
    assert ("dominant_code" in finding_names(evidence)) == reported


@pytest.mark.parametrize(("fraction", "reported"), [(0.30, False), (0.31, True)])
def test_dominant_code_has_over_30_percent_of_the_tokens(fraction: float, reported: bool) -> None:
    hits = round(1000 * fraction)
    other_hits = [(1000 - hits) // 10] * 9
    evidence = make_evidence([hits, *other_hits, 1000 - hits - sum(other_hits)])
    assert ("dominant_code" in finding_names(evidence)) == reported


def test_dominant_code_is_a_note_if_the_others_are_used_evenly() -> None:
    assert severities(make_evidence([4000] + [100] * 15))["dominant_code"] == "note"
    assert severities(make_evidence([4000, 1000] + [5] * 14))["dominant_code"] == "warning"


def test_counts_of_levels_that_share_a_codebook_are_summed() -> None:
    """Each level uses the half of the codes that the other does not use."""
    first, second = [100] * 8 + [0] * 8, [0] * 8 + [100] * 8
    assert "dead_codes" in finding_names(make_evidence(first, second, settings=make_settings(residual_block())))
    assert finding_names(make_evidence(first, second, settings=make_settings(residual_block(shared=True)))) == set()


def test_index_file_levels_that_may_share_a_codebook_are_not_severe() -> None:
    first, second = [100] * 12 + [0] * 12, [0] * 11 + [100] * 13
    file = make_evidence(first, second)
    assert severities(file) == {"dead_codes": "warning"}
    (dead, _) = diagnose(file)
    assert mentions(dead.cause, "share ... 0 dead codes")
    collapsed, uniform = [4000] + [0] * 23, [200] * 24
    assert severities(make_evidence(collapsed, uniform))["collapse"] == "warning"
    assert severities(make_evidence(collapsed, collapsed)) == {
        "collapse": "severe",
        "dead_codes": "severe",
        "dominant_code": "warning",
    }
    assert severities(make_evidence(collapsed, [200] * 23)) == {  # levels of different sizes cannot share
        "collapse": "severe",
        "dead_codes": "severe",
        "dominant_code": "warning",
    }
