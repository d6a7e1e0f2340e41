"""Several runs side by side: bits, differing settings, the table."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import IDENTITY, MLP, make_run, normal
from tests.conftest import TrainedRun
from vqtool.inspection import inspect
from vqtool.inspection.comparison import (
    TargetSummary,
    comparison_rows,
    differing_settings,
    group_by_value,
    same_data,
    summarize_target,
)
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ in the width of the encoder, and one with another encoder and quantizer."""
    array = normal(40, 6)
    folders = [tmp_path_factory.mktemp(name) for name in "abc"]
    residual = {"kind": "residual", "levels": 2, "quantizer": {"kind": "vector", "codebook_size": 4}}
    return [
        make_run(folders[0], array, {**MLP, "width": 16}),
        make_run(folders[1], array, {**MLP, "width": 8}),
        make_run(folders[2], array, IDENTITY, quantizer=residual),
    ]


def summarize(*runs: Path) -> list[TargetSummary]:
    return [summarize_target(inspection, RunDirectory(inspection.target)) for inspection in inspect(list(runs))]


def test_bits_per_sample_are_summed_over_positions_and_levels(runs: list[Path]) -> None:
    first, _, last = summarize(*runs)
    assert (first.bits, last.bits) == (16 * 4, 2 * 2)
    assert first.used_bits == pytest.approx(16 * first.inspection.levels[0].entropy_bits)
    assert last.used_bits == pytest.approx(sum(level.entropy_bits for level in last.inspection.levels))
    best = read_model(RunDirectory(runs[0]).model)[0]
    assert first.reconstruction == best.metrics["validation/loss/reconstruction"]
    assert first.step == best.step


def test_differing_settings_have_the_value_of_each_run(runs: list[Path]) -> None:
    differing = differing_settings(summarize(*runs[:2]))
    paths = [str(run.parent / "data.npy") for run in runs[:2]]
    widths = ("model.decoder.width", "model.encoder.width", "model.quantizer.codebook_dim")
    assert differing == {"data.path": paths, **{key: [16, 8] for key in widths}}


def test_keys_of_another_kind_are_left_out_unless_runs_of_that_kind_differ(runs: list[Path]) -> None:
    differing = differing_settings(summarize(runs[0], runs[2]))
    assert differing["model.encoder.kind"] == ["mlp", "identity"]
    assert differing["model.quantizer.kind"] == ["vector", "residual"]
    assert not differing.keys() & {"model.encoder.width", "model.quantizer.codebook_size", "model.quantizer.levels"}
    of_three = differing_settings(summarize(*runs))
    assert of_three["model.encoder.width"] == [16, 8, None]


def test_a_run_does_not_differ_from_itself(trained: TrainedRun) -> None:
    twice = summarize(trained.folder, trained.folder)
    assert differing_settings(twice) == {}
    assert same_data(twice)


def test_null_values_differ_from_missing_keys(runs: list[Path]) -> None:
    first, second = summarize(*runs[:2])
    assert first.settings
    without_decoder = first.settings.model.model_copy(update={"decoder": None})
    changed = first.settings.model_copy(update={"model": without_decoder})
    differing = differing_settings([replace(first, settings=changed), second])
    assert differing["model.decoder"] == ["null", None]


def test_values_are_grouped_with_the_numbers_of_their_runs() -> None:
    assert group_by_value(["a", "b", None, "a"]) == "a (1, 4), b (2)"


def test_index_files_are_compared_by_their_counts_only(tmp_path: Path, trained: TrainedRun, vqtool) -> None:  # type: ignore[no-untyped-def]
    vqtool("encode", trained.folder, "--out", tmp_path / "t.npy")
    run, file = summarize(trained.folder, tmp_path / "t.npy")
    assert (file.bits, file.settings, file.reconstruction) == (None, None, None)
    assert differing_settings([run, file]) == {}
    first, second = comparison_rows([run, file])
    assert first[0] == "1"
    assert second[:4] == ("2", str(tmp_path / "t.npy"), "16", f"{np.load(tmp_path / 't.npy').size:,}")
    assert second[-3:] == ("", "", "")
