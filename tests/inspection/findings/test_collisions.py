"""Finding of id collisions, at both sides of its thresholds."""

import pytest

from tests.inspection.findings.evidence_builders import finding_names, make_evidence, make_settings, residual_block
from vqtool.metrics.collisions import IdCounts


# Of 1,000 rows with random ids out of 16², 1 - 256 (1 - (255 / 256)^1000) / 1000 = 74.9% collide; out of 16⁴, 0.8%.
@pytest.mark.parametrize(
    ("positions", "ids", "reported"), [(1, 100, False), (2, 890, True), (2, 910, False), (2, 989, False)]
)
def test_collisions_are_reported_beyond_3_times_the_birthday_bound(positions: int, ids: int, reported: bool) -> None:
    hits = [1000 * positions // 16] * 15
    hits.append(1000 * positions - sum(hits))
    evidence = make_evidence(hits, hits, distinct=IdCounts(1000, ids), settings=make_settings(residual_block()))
    assert ("collisions" in finding_names(evidence)) == reported


def test_number_of_ids_may_exceed_the_range_of_a_float() -> None:
    hits = [6400 // 256] * 256
    evidence = make_evidence(hits, hits, distinct=IdCounts(100, 80), settings=make_settings(residual_block()))
    assert "collisions" in finding_names(evidence)
