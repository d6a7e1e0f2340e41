"""`vqtool eval`."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import IDENTITY, make_run, normal
from tests.cli import mentions
from tests.conftest import Result, TrainedRun
from vqtool.config import RunSettings, load_config
from vqtool.inference.rate_distortion import rate_distortion
from vqtool.inference.tokenizer import load
from vqtool.training import train

Command = Callable[..., Result]

FIELDS = {
    "samples",
    "mse",
    "nmse",
    "accuracy",
    "baseline_accuracy",
    "bits_per_sample",
    "collision_rate",
    "losses",
    "levels",
}


@pytest.fixture(scope="module")
def tiles_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on synthetic maps of classes."""
    folder = tmp_path_factory.mktemp("tiles") / "run"
    encoder = {"kind": "transformer", "num_tokens": 5, "patch_size": 4, "width": 8, "depth": 1, "heads": 2}
    values = {
        "name": "tiles",
        "data": {"kind": "synthetic", "samples": 40, "source": {"kind": "tiles", "height": 12, "width": 12}},
        "model": {"encoder": encoder, "quantizer": {"kind": "vector", "codebook_size": 9, "codebook_dim": 4}},
        "training": {"steps": 2, "batch_size": 16, "device": "cpu"},
    }
    train(RunSettings.model_validate(values), folder)
    return folder


def evaluate(vqtool: Command, *arguments: object) -> dict[str, Any]:
    result = vqtool("eval", *arguments, "--json")
    assert (result.code, result.err, result.out.count("\n")) == (0, "", 1)
    return json.loads(result.out)


def test_without_data_the_validation_split_is_evaluated(trained: TrainedRun, vqtool: Command) -> None:
    fields = evaluate(vqtool, trained.folder)
    last = json.loads((trained.folder / "summary.json").read_text())["best"]
    assert set(fields) == FIELDS
    assert fields["samples"] == 6
    assert fields["collision_rate"] is None
    assert fields["losses"] == {name: last[f"validation/loss/{name}"] for name in fields["losses"]}
    assert set(fields["losses"]) == {"total", "reconstruction", "commitment", "entropy"}
    assert fields["levels"][0]["usage"] == last["codebook/usage"]


def test_mse_and_nmse_are_in_the_units_of_the_data(trained: TrainedRun, vqtool: Command, tmp_path: Path) -> None:
    """Data are far from the normalised scale, so that errors in normalised units would differ."""
    rows = trained.array[:20] * 50 + 1000
    np.save(tmp_path / "far.npy", rows)
    fields = evaluate(vqtool, trained.folder, tmp_path / "far.npy")
    tokenizer = load(trained.folder)
    error = np.square(tokenizer.decode(tokenizer.encode(rows)).numpy().astype(np.float64) - rows).mean()
    assert (fields["samples"], fields["accuracy"]) == (20, None)
    assert fields["mse"] == pytest.approx(error, rel=1e-9)
    assert fields["nmse"] == pytest.approx(error / rows.astype(np.float64).var(axis=0).mean(), rel=1e-9)


def test_bits_per_sample_are_tokens_times_bits_per_code(trained: TrainedRun, vqtool: Command, tmp_path: Path) -> None:
    assert evaluate(vqtool, trained.folder)["bits_per_sample"] == 16 * 4
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).random((3, 1, 8, 16), dtype=np.float32))
    assert evaluate(vqtool, trained.folder, tmp_path / "wide.npy")["bits_per_sample"] == 32 * 4


def test_nmse_of_constant_data_is_null(trained: TrainedRun, vqtool: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "same.npy", np.full((5, 1, 8, 8), 0.1, np.float32))
    fields = evaluate(vqtool, trained.folder, tmp_path / "same.npy")
    assert fields["nmse"] is None
    assert fields["mse"] > 0


def test_classes_have_accuracy_and_no_mse(tiles_run: Path, vqtool: Command, tmp_path: Path) -> None:
    fields = evaluate(vqtool, tiles_run)
    assert (fields["samples"], fields["mse"], fields["nmse"]) == (4, None, None)
    assert fields["bits_per_sample"] == pytest.approx(5 * np.log2(9))
    maps = np.random.default_rng(0).integers(0, 3, (11, 12, 12), dtype=np.uint8)
    np.save(tmp_path / "maps.npy", maps)
    fields = evaluate(vqtool, tiles_run, tmp_path / "maps.npy")
    tokenizer = load(tiles_run)
    assert fields["accuracy"] == (tokenizer.decode(tokenizer.encode(maps)).numpy() == maps).mean()


def test_synthetic_data_of_a_run_are_generated_again(tiles_run: Path, vqtool: Command, tmp_path: Path) -> None:
    result = vqtool("encode", tiles_run, "--out", tmp_path / "tokens.npy", "--json")
    assert json.loads(result.out)["shape"] == [40, 5]
    assert json.loads(result.out)["shards"][0]["rows"] == 40


def test_table_shows_the_values_of_json(trained: TrainedRun, tiles_run: Path, vqtool: Command) -> None:
    fields = evaluate(vqtool, trained.folder)
    result = vqtool("eval", trained.folder)
    rows = {line.split("  ")[0]: line for line in result.out.splitlines()}
    assert f"{fields['mse']:.6g}" in rows["mse"]
    assert f"{fields['nmse']:.6g}" in rows["nmse"]
    assert "64.0" in rows["bits per sample"]
    assert "accuracy" not in rows
    assert "accuracy" in vqtool("eval", tiles_run).out


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("gone.npy", "gone.npy: does not exist"),
        ("gone/*.npy", "gone/*.npy ... no file"),
        ("colour.npy", "(3, 8, 8) ... (1, 8, 8)"),
    ],
)
def test_wrong_data_exits_with_2(
    data: str, message: str, trained: TrainedRun, vqtool: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("colour.npy", np.zeros((4, 3, 8, 8), np.float32))
    result = vqtool("eval", trained.folder, data)
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, message)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 12, 12), 3, np.uint8), "row 0 ... class 3 ... 0 to 2"),
        (np.full((2, 12, 12), -1, np.int8), "row 0 ... negative"),
        (np.zeros((2, 12, 12), np.float32), "float32 ... classes (uint8)"),
        (
            np.zeros((2, 8, 12), np.uint8),
            "(8, 12) ... (12, 12)",
        ),
    ],
    ids=["class", "negative", "values", "size"],
)
def test_maps_with_other_classes_dtype_or_size_are_refused(
    array: np.ndarray, message: str, tiles_run: Path, vqtool: Command, tmp_path: Path
) -> None:
    np.save(tmp_path / "maps.npy", array)
    result = vqtool("eval", tiles_run, tmp_path / "maps.npy")
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, message)


def test_config_of_a_run_on_classes_is_resolved(tiles_run: Path) -> None:
    settings = load_config(tiles_run / "config.yaml")
    assert (settings.loss.reconstruction, settings.data.classes, settings.data.normalize) == (
        "cross_entropy",
        3,
        "none",
    )


# Collisions and rate-distortion


def test_collision_rate_is_one_minus_distinct_ids_per_row(catalogue: TrainedRun, vqtool: Command) -> None:
    ids = load(catalogue.folder).encode(catalogue.array).reshape(60, -1).tolist()
    fields = evaluate(vqtool, catalogue.folder, catalogue.data)
    assert fields["collision_rate"] == 1 - len(set(map(tuple, ids))) / 60
    assert 0 < fields["collision_rate"] < 1
    assert f"{fields['collision_rate']:.4%}" in vqtool("eval", catalogue.folder, catalogue.data).out


def test_each_level_has_its_own_counts(catalogue: TrainedRun, vqtool: Command) -> None:
    ids = load(catalogue.folder).encode(catalogue.array).reshape(60, -1).numpy()
    fields = evaluate(vqtool, catalogue.folder, catalogue.data)
    counts = [np.bincount(level, minlength=4).tolist() for level in ids.T]
    assert [level["counts"] for level in fields["levels"]] == counts
    assert fields["bits_per_sample"] == 4


def test_rate_distortion_is_added_by_its_option(catalogue: TrainedRun, vqtool: Command) -> None:
    fields = evaluate(vqtool, catalogue.folder, "--rate-distortion")
    assert set(fields) == FIELDS | {"rate_distortion"}
    assert fields["rate_distortion"] == asdict(rate_distortion(load(catalogue.folder)))
    names = {"error", "reference", "ratio", "n_init", "fitted_on", "shannon_bound"}
    assert set(fields["rate_distortion"]) == names
    assert (fields["rate_distortion"]["fitted_on"], fields["rate_distortion"]["shannon_bound"]) == (45, None)
    assert {name: fields[name] for name in FIELDS} == evaluate(vqtool, catalogue.folder)


def test_rate_distortion_of_other_data(catalogue: TrainedRun, vqtool: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", catalogue.array[:20])
    fields = evaluate(vqtool, catalogue.folder, tmp_path / "few.npy", "--rate-distortion")["rate_distortion"]
    assert fields == asdict(rate_distortion(load(catalogue.folder), str(tmp_path / "few.npy")))


def test_table_shows_rate_distortion(catalogue: TrainedRun, vqtool: Command) -> None:
    fields = evaluate(vqtool, catalogue.folder, "--rate-distortion")["rate_distortion"]
    result = vqtool("eval", catalogue.folder, "--rate-distortion")
    rows = {line.split("  ")[0]: line for line in result.out.splitlines()}
    assert f"{fields['error']:.4g}" in rows["quantization error"]
    assert f"{fields['reference']:.4g}" in rows["reference"]
    assert f"{fields['ratio']:.3f}" in rows["error / reference"]
    assert "Shannon bound" not in rows
    assert "quantization error" not in vqtool("eval", catalogue.folder).out


def test_rate_distortion_reference_is_null_with_fewer_latents_than_codes(vqtool: Command, tmp_path: Path) -> None:
    quantizer = {"kind": "vector", "codebook_size": 32}
    run = make_run(tmp_path, normal(24, 3), IDENTITY, quantizer=quantizer)
    fields = evaluate(vqtool, run, "--rate-distortion")["rate_distortion"]
    assert (fields["reference"], fields["ratio"], fields["fitted_on"]) == (None, None, 18)
    rows = {line.split("  ")[0]: line for line in vqtool("eval", run, "--rate-distortion").out.splitlines()}
    assert mentions(rows["reference"], "fewer ... latents ... codes")
    assert "error / reference" not in rows
