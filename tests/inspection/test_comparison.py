"""Runs side by side."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import IDENTITY, MLP, make_run, normal
from tests.conftest import TrainedRun
from vqtool.inspection import inspect
from vqtool.inspection.comparison import Compared, compared, differences, grouped, same_data, table
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two that differ in the encoder, on one array, and one of another quantizer."""
    array = normal(40, 6)
    folders = [tmp_path_factory.mktemp(name) for name in "abc"]
    residual = {"kind": "residual", "levels": 2, "quantizer": {"kind": "vector", "codebook_size": 4}}
    return [
        make_run(folders[0], array, {**MLP, "width": 16}),
        make_run(folders[1], array, {**MLP, "width": 8}),
        make_run(folders[2], array, IDENTITY, quantizer=residual),
    ]


def side_by_side(*runs: Path) -> list[Compared]:
    return [compared(found, RunDirectory(found.target)) for found in inspect(list(runs))]


def test_bits_are_those_of_all_positions_and_levels(runs: list[Path]) -> None:
    first, _, last = side_by_side(*runs)
    assert (first.bits, last.bits) == (16 * 4, 2 * 2)
    assert first.used_bits == pytest.approx(16 * first.inspection.levels[0].entropy_bits)
    assert last.used_bits == pytest.approx(sum(level.entropy_bits for level in last.inspection.levels))
    best = read_model(RunDirectory(runs[0]).model)[0]
    assert first.reconstruction == best.metrics["validation/loss/reconstruction"]
    assert first.step == best.step


def test_differing_settings_are_named_with_each_runs_value(runs: list[Path]) -> None:
    found = differences(side_by_side(*runs[:2]))
    paths = [str(run.parent / "data.npy") for run in runs[:2]]
    widths = ("model.decoder.width", "model.encoder.width", "model.quantizer.codebook_dim")
    assert found == {"data.path": paths, **{key: [16, 8] for key in widths}}


def test_what_another_kind_has_is_said_by_the_kind(runs: list[Path]) -> None:
    found = differences(side_by_side(runs[0], runs[2]))
    assert found["model.encoder.kind"] == ["mlp", "identity"]
    assert found["model.quantizer.kind"] == ["vector", "residual"]
    assert not found.keys() & {"model.encoder.width", "model.quantizer.codebook_size", "model.quantizer.levels"}
    three = differences(side_by_side(*runs))
    assert three["model.encoder.width"] == [16, 8, None]


def test_a_run_does_not_differ_from_itself(trained: TrainedRun) -> None:
    twice = side_by_side(trained.folder, trained.folder)
    assert differences(twice) == {}
    assert same_data(twice)


def test_what_is_set_to_nothing_is_told_from_what_has_no_such_key(runs: list[Path]) -> None:
    one, other = side_by_side(*runs[:2])
    assert one.settings
    changed = one.settings.model_copy(update={"model": one.settings.model.model_copy(update={"decoder": None})})
    found = differences([replace(one, settings=changed), other])
    assert found["model.decoder"] == ["null", None]


def test_values_are_told_with_their_runs() -> None:
    assert grouped(["a", "b", None, "a"]) == "a (1, 4), b (2)"


def test_an_index_file_has_its_counts_alone(tmp_path: Path, trained: TrainedRun, vqtool) -> None:  # type: ignore[no-untyped-def]
    vqtool("encode", trained.folder, "--out", tmp_path / "t.npy")
    run, file = side_by_side(trained.folder, tmp_path / "t.npy")
    assert (file.bits, file.settings, file.reconstruction) == (None, None, None)
    assert differences([run, file]) == {}
    first, second = table([run, file])
    assert first[0] == "1"
    assert second[:4] == ("2", str(tmp_path / "t.npy"), "16", f"{np.load(tmp_path / 't.npy').size:,}")
    assert second[-3:] == ("", "", "")
