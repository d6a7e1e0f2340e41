"""What findings are drawn from: settings by key, figures by level, validations up to the best one."""

from typing import Any

import pytest
import torch

from tests.conftest import TrainedRun
from vqtool.config import RunSettings
from vqtool.inspection.evidence import Evidence, of_run
from vqtool.metrics.usage import Usage, usage_from_counts
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory

VECTOR = {"kind": "vector", "codebook_size": 4, "codebook_dim": 2}
RESIDUAL = {"kind": "residual", "levels": 2, "quantizer": VECTOR}


def usages(*counts: list[int]) -> list[Usage]:
    return [usage_from_counts(torch.tensor(hits)) for hits in counts]


def settings(quantizer: dict[str, Any]) -> RunSettings:
    return RunSettings.model_validate(
        {"data": {"kind": "tensors", "path": "/x.npy"}, "model": {"encoder": {"kind": "mlp"}, "quantizer": quantizer}}
    )


@pytest.mark.parametrize(
    ("quantizer", "key", "size"),
    [
        (VECTOR, "model.quantizer.dead_code_reset", 4),
        (RESIDUAL, "model.quantizer.quantizer.dead_code_reset", 4),
        ({"kind": "product", "groups": 2, "quantizer": VECTOR}, "model.quantizer.quantizer.dead_code_reset", 4),
        (
            {"kind": "product", "groups": 2, "quantizer": RESIDUAL},
            "model.quantizer.quantizer.quantizer.dead_code_reset",
            4,
        ),
        ({"kind": "lfq", "bits": 3}, "model.quantizer.dead_code_reset", None),
    ],
    ids=["vector", "residual", "product", "product of residual", "lfq"],
)
def test_keys_lead_to_the_levels_own_quantizer(quantizer: dict[str, Any], key: str, size: int | None) -> None:
    evidence = Evidence(usages([1, 1]), settings=settings(quantizer))
    assert evidence.key("dead_code_reset") == key
    assert evidence.setting("codebook_size") == size


def test_nothing_is_known_of_settings_that_are_not_there() -> None:
    evidence = Evidence(usages([1, 1]))
    assert evidence.key("dead_code_reset") == "model.quantizer.dead_code_reset"
    assert evidence.setting("dead_code_reset") is None
    assert (evidence.sharing, evidence.depth, evidence.more_levels) == (1, 1, None)
    assert not evidence.given
    assert evidence.young_until is None


@pytest.mark.parametrize(
    ("quantizer", "depth", "more"),
    [
        (VECTOR, 1, None),
        (RESIDUAL, 2, ("model.quantizer.levels", 2)),
        ({"kind": "product", "groups": 2, "quantizer": VECTOR}, 1, None),
        ({"kind": "product", "groups": 2, "quantizer": RESIDUAL}, 2, ("model.quantizer.quantizer.levels", 2)),
        ({"kind": "fsq", "levels": [3, 3]}, 1, None),
    ],
    ids=["vector", "residual", "product", "product of residual", "fsq"],
)
def test_depth_is_that_of_the_residual_quantizer_wherever_it_stands(
    quantizer: dict[str, Any], depth: int, more: tuple[str, int] | None
) -> None:
    evidence = Evidence(usages([1, 1]), settings=settings(quantizer))
    assert (evidence.depth, evidence.more_levels) == (depth, more)


def test_figures_stand_under_their_level_where_there_are_several() -> None:
    metrics = {"codebook/error": 0.5, "codebook/level_0/error": 0.25, "codebook/level_1/error": 0.75}
    one, two = Evidence(usages([1, 1]), metrics=metrics), Evidence(usages([1, 1], [2, 0]), metrics=metrics)
    assert (one.metric(0, "error"), one.where(0)) == (0.5, "")
    assert (two.metric(0, "error"), two.metric(1, "error"), two.where(1)) == (0.25, 0.75, " of level 1")
    assert two.metric(1, "spread") is None
    assert one.metric(0, "error", {"codebook/error": 0.125}) == 0.125


def test_a_shared_codebook_is_one() -> None:
    levels = usages([3, 0], [1, 2])
    shared = Evidence(levels, settings=settings({**RESIDUAL, "shared": True}))
    apart = Evidence(levels, settings=settings(RESIDUAL))
    assert [(first, usage.counts) for first, usage in shared.codebooks] == [(0, [4, 2])]
    assert [(first, usage.counts) for first, usage in apart.codebooks] == [(0, [3, 0]), (1, [1, 2])]
    assert (shared.where(1), shared.which(0), apart.which(1)) == (" of level 1", "", " of level 1")


def test_each_group_of_a_product_has_a_codebook_that_its_levels_share() -> None:
    groups = {"kind": "product", "groups": 2, "quantizer": {**RESIDUAL, "shared": True}}
    evidence = Evidence(usages([3, 0], [1, 2], [0, 5], [1, 4]), settings=settings(groups))
    assert [(first, usage.counts) for first, usage in evidence.codebooks] == [(0, [4, 2]), (2, [1, 9])]
    assert (evidence.which(0), evidence.which(2)) == (" of levels 0 to 1", " of levels 2 to 3")


def test_levels_may_share_a_codebook_where_nothing_is_known_and_they_are_of_one_size() -> None:
    levels = usages([3, 0], [1, 2])
    perhaps = Evidence(levels).perhaps_shared
    assert perhaps is not None
    assert perhaps.counts == [4, 2]
    known = Evidence(levels, settings=settings(RESIDUAL))
    for sure in (known, Evidence(levels[:1]), Evidence(usages([3, 0], [1, 2, 3]))):
        assert sure.perhaps_shared is None


def test_codes_are_given_where_nothing_learns_them() -> None:
    assert Evidence(usages([1, 1]), settings=settings({"kind": "lfq", "bits": 1})).given
    assert not Evidence(usages([1, 1]), settings=settings(VECTOR)).given


def test_validations_are_parted_at_the_best_one(trained: TrainedRun) -> None:
    run = RunDirectory(trained.folder)
    saved, _ = read_model(run.model)
    at = {step: of_run(run, saved._replace(step=step)) for step in (6, 12)}
    assert [[line["step"] for line in part] for part in (at[6].history, at[6].later)] == [[6], [12]]
    assert [[line["step"] for line in part] for part in (at[12].history, at[12].later)] == [[6, 12], []]
    assert at[12].tokens == 54 * 16
    assert at[12].metrics == saved.metrics
    assert at[12].levels[0].tokens == 6 * 16
    unknown = of_run(run, saved._replace(step=None))
    assert (list(unknown.history), list(unknown.later)) == ([], [])
