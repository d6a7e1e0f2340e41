"""Evidence: quantizer settings by key, metrics by level, validations before and after the best one."""

from typing import Any

import pytest
import torch

from tests.conftest import TrainedRun
from vqtool.config import RunSettings
from vqtool.inspection.evidence import Evidence, evidence_from_run
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
def test_quantizer_key_and_setting_are_those_of_the_innermost_quantizer(
    quantizer: dict[str, Any], key: str, size: int | None
) -> None:
    evidence = Evidence(usages([1, 1]), settings=settings(quantizer))
    assert evidence.quantizer_key("dead_code_reset") == key
    assert evidence.quantizer_setting("codebook_size") == size


def test_defaults_without_settings() -> None:
    evidence = Evidence(usages([1, 1]))
    assert evidence.quantizer_key("dead_code_reset") == "model.quantizer.dead_code_reset"
    assert evidence.quantizer_setting("dead_code_reset") is None
    assert (evidence.levels_per_codebook, evidence.residual_depth, evidence.residual_levels) == (1, 1, None)
    assert not evidence.has_fixed_codes
    assert evidence.early_until is None


@pytest.mark.parametrize(
    ("quantizer", "depth", "levels"),
    [
        (VECTOR, 1, None),
        (RESIDUAL, 2, ("model.quantizer.levels", 2)),
        ({"kind": "product", "groups": 2, "quantizer": VECTOR}, 1, None),
        ({"kind": "product", "groups": 2, "quantizer": RESIDUAL}, 2, ("model.quantizer.quantizer.levels", 2)),
        ({"kind": "fsq", "levels": [3, 3]}, 1, None),
    ],
    ids=["vector", "residual", "product", "product of residual", "fsq"],
)
def test_residual_depth_is_found_in_nested_quantizers(
    quantizer: dict[str, Any], depth: int, levels: tuple[str, int] | None
) -> None:
    evidence = Evidence(usages([1, 1]), settings=settings(quantizer))
    assert (evidence.residual_depth, evidence.residual_levels) == (depth, levels)


def test_metrics_are_tagged_by_level_only_if_there_are_several() -> None:
    metrics = {"codebook/error": 0.5, "codebook/level_0/error": 0.25, "codebook/level_1/error": 0.75}
    one, two = Evidence(usages([1, 1]), metrics=metrics), Evidence(usages([1, 1], [2, 0]), metrics=metrics)
    assert (one.metric(0, "error"), one.level_suffix(0)) == (0.5, "")
    assert (two.metric(0, "error"), two.metric(1, "error"), two.level_suffix(1)) == (0.25, 0.75, " of level 1")
    assert two.metric(1, "spread") is None
    assert one.metric(0, "error", {"codebook/error": 0.125}) == 0.125


def test_counts_of_a_shared_codebook_are_summed_over_levels() -> None:
    levels = usages([3, 0], [1, 2])
    shared = Evidence(levels, settings=settings({**RESIDUAL, "shared": True}))
    separate = Evidence(levels, settings=settings(RESIDUAL))
    assert [(first, usage.counts) for first, usage in shared.codebooks] == [(0, [4, 2])]
    assert [(first, usage.counts) for first, usage in separate.codebooks] == [(0, [3, 0]), (1, [1, 2])]
    assert (shared.level_suffix(1), shared.codebook_suffix(0), separate.codebook_suffix(1)) == (
        " of level 1",
        "",
        " of level 1",
    )


def test_each_group_of_a_product_has_its_own_shared_codebook() -> None:
    groups = {"kind": "product", "groups": 2, "quantizer": {**RESIDUAL, "shared": True}}
    evidence = Evidence(usages([3, 0], [1, 2], [0, 5], [1, 4]), settings=settings(groups))
    assert [(first, usage.counts) for first, usage in evidence.codebooks] == [(0, [4, 2]), (2, [1, 9])]
    assert (evidence.codebook_suffix(0), evidence.codebook_suffix(2)) == (" of levels 0 to 1", " of levels 2 to 3")


def test_levels_of_equal_size_may_share_a_codebook_if_settings_are_unknown() -> None:
    levels = usages([3, 0], [1, 2])
    usage = Evidence(levels).possibly_shared_usage
    assert usage is not None
    assert usage.counts == [4, 2]
    with_settings = Evidence(levels, settings=settings(RESIDUAL))
    for evidence in (with_settings, Evidence(levels[:1]), Evidence(usages([3, 0], [1, 2, 3]))):
        assert evidence.possibly_shared_usage is None


def test_codes_of_lfq_are_fixed() -> None:
    assert Evidence(usages([1, 1]), settings=settings({"kind": "lfq", "bits": 1})).has_fixed_codes
    assert not Evidence(usages([1, 1]), settings=settings(VECTOR)).has_fixed_codes


def test_validations_are_split_at_the_best_one(trained: TrainedRun) -> None:
    run = RunDirectory(trained.folder)
    saved, _ = read_model(run.model)
    best_at = {step: evidence_from_run(run, saved._replace(step=step)) for step in (6, 12)}
    assert [[metrics["step"] for metrics in validations] for validations in (best_at[6].history, best_at[6].later)] == [
        [6],
        [12],
    ]
    assert [
        [metrics["step"] for metrics in validations] for validations in (best_at[12].history, best_at[12].later)
    ] == [[6, 12], []]
    assert best_at[12].training_tokens == 54 * 16
    assert best_at[12].metrics == saved.metrics
    assert best_at[12].levels[0].tokens == 6 * 16
    step_unknown = evidence_from_run(run, saved._replace(step=None))
    assert (list(step_unknown.history), list(step_unknown.later)) == ([], [])
