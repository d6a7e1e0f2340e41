"""`vqtool eval`."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import IDENTITY, make_run, normal
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
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on maps of classes."""
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
    done = vqtool("eval", *arguments, "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    return json.loads(done.out)


def test_without_data_it_takes_the_validation_part(trained: TrainedRun, vqtool: Command) -> None:
    told = evaluate(vqtool, trained.folder)
    last = json.loads((trained.folder / "summary.json").read_text())["best"]
    assert set(told) == FIELDS
    assert told["samples"] == 6
    assert told["collision_rate"] is None
    assert told["losses"] == {name: last[f"validation/loss/{name}"] for name in told["losses"]}
    assert set(told["losses"]) == {"total", "reconstruction", "commitment", "entropy"}
    assert told["levels"][0]["usage"] == last["codebook/usage"]


def test_the_error_of_values_is_in_the_datas_own_units(trained: TrainedRun, vqtool: Command, tmp_path: Path) -> None:
    """Against the formulas of the contract, on data far from the unit scale that the model normalises to."""
    rows = trained.array[:20] * 50 + 1000
    np.save(tmp_path / "far.npy", rows)
    told = evaluate(vqtool, trained.folder, tmp_path / "far.npy")
    tokenizer = load(trained.folder)
    error = np.square(tokenizer.decode(tokenizer.encode(rows)).numpy().astype(np.float64) - rows).mean()
    assert (told["samples"], told["accuracy"]) == (20, None)
    assert told["mse"] == pytest.approx(error, rel=1e-9)
    assert told["nmse"] == pytest.approx(error / rows.astype(np.float64).var(axis=0).mean(), rel=1e-9)


def test_bits_are_positions_times_those_of_a_code(trained: TrainedRun, vqtool: Command, tmp_path: Path) -> None:
    assert evaluate(vqtool, trained.folder)["bits_per_sample"] == 16 * 4
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).random((3, 1, 8, 16), dtype=np.float32))
    assert evaluate(vqtool, trained.folder, tmp_path / "wide.npy")["bits_per_sample"] == 32 * 4


def test_the_nmse_of_constant_data_is_null(trained: TrainedRun, vqtool: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "same.npy", np.full((5, 1, 8, 8), 0.1, np.float32))
    told = evaluate(vqtool, trained.folder, tmp_path / "same.npy")
    assert told["nmse"] is None
    assert told["mse"] > 0


def test_classes_have_an_accuracy_in_place_of_an_error(tiles: Path, vqtool: Command, tmp_path: Path) -> None:
    told = evaluate(vqtool, tiles)
    assert (told["samples"], told["mse"], told["nmse"]) == (4, None, None)
    assert told["bits_per_sample"] == pytest.approx(5 * np.log2(9))
    maps = np.random.default_rng(0).integers(0, 3, (11, 12, 12), dtype=np.uint8)
    np.save(tmp_path / "maps.npy", maps)
    told = evaluate(vqtool, tiles, tmp_path / "maps.npy")
    tokenizer = load(tiles)
    assert told["accuracy"] == (tokenizer.decode(tokenizer.encode(maps)).numpy() == maps).mean()


def test_synthetic_data_are_made_up_again(tiles: Path, vqtool: Command, tmp_path: Path) -> None:
    done = vqtool("encode", tiles, "--out", tmp_path / "tokens.npy", "--json")
    assert json.loads(done.out)["shape"] == [40, 5]
    assert json.loads(done.out)["shards"][0]["rows"] == 40


def test_the_table_says_the_same(trained: TrainedRun, tiles: Path, vqtool: Command) -> None:
    told = evaluate(vqtool, trained.folder)
    done = vqtool("eval", trained.folder)
    rows = {line.split("  ")[0]: line for line in done.out.splitlines()}
    assert f"{told['mse']:.6g}" in rows["mse"]
    assert f"{told['nmse']:.6g}" in rows["nmse"]
    assert "64.0" in rows["bits per sample"]
    assert "accuracy" not in rows
    assert "accuracy" in vqtool("eval", tiles).out


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("gone.npy", "gone.npy: does not exist"),
        ("gone/*.npy", "gone/*.npy: matches no file"),
        ("colour.npy", "rows have shape (3, 8, 8), but the model was trained on rows of shape (1, 8, 8)"),
    ],
)
def test_wrong_data_is_2(
    data: str, message: str, trained: TrainedRun, vqtool: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("colour.npy", np.zeros((4, 3, 8, 8), np.float32))
    done = vqtool("eval", trained.folder, data)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 12, 12), 3, np.uint8), "row 0 contains class 3 (largest: 3), but valid classes are 0 to 2"),
        (np.full((2, 12, 12), -1, np.int8), "row 0 contains a negative integer"),
        (np.zeros((2, 12, 12), np.float32), "float32 does not match the model; it was trained on classes (uint8)"),
        (
            np.zeros((2, 8, 12), np.uint8),
            "rows have shape (8, 12), but the model was trained on rows of shape (12, 12)",
        ),
    ],
    ids=["class", "negative", "values", "size"],
)
def test_maps_that_the_model_cannot_take_are_refused(
    array: np.ndarray, message: str, tiles: Path, vqtool: Command, tmp_path: Path
) -> None:
    np.save(tmp_path / "maps.npy", array)
    done = vqtool("eval", tiles, tmp_path / "maps.npy")
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_a_run_of_classes_names_its_loss(tiles: Path) -> None:
    settings = load_config(tiles / "config.yaml")
    assert (settings.loss.reconstruction, settings.data.classes, settings.data.normalize) == (
        "cross_entropy",
        3,
        "none",
    )


# Collisions, and k-means beside the codes


def test_the_collision_rate_is_the_share_of_rows_beyond_the_first_of_their_id(
    catalogue: TrainedRun, vqtool: Command
) -> None:
    ids = load(catalogue.folder).encode(catalogue.array).reshape(60, -1).tolist()
    told = evaluate(vqtool, catalogue.folder, catalogue.data)
    assert told["collision_rate"] == 1 - len(set(map(tuple, ids))) / 60
    assert 0 < told["collision_rate"] < 1
    assert f"{told['collision_rate']:.4%}" in vqtool("eval", catalogue.folder, catalogue.data).out


def test_each_level_has_its_own_usage(catalogue: TrainedRun, vqtool: Command) -> None:
    ids = load(catalogue.folder).encode(catalogue.array).reshape(60, -1).numpy()
    told = evaluate(vqtool, catalogue.folder, catalogue.data)
    counts = [np.bincount(level, minlength=4).tolist() for level in ids.T]
    assert [level["counts"] for level in told["levels"]] == counts
    assert told["bits_per_sample"] == 4


def test_rate_distortion_is_told_where_it_is_asked_for(catalogue: TrainedRun, vqtool: Command) -> None:
    told = evaluate(vqtool, catalogue.folder, "--rate-distortion")
    assert set(told) == FIELDS | {"rate_distortion"}
    assert told["rate_distortion"] == asdict(rate_distortion(load(catalogue.folder)))
    fields = {"error", "reference", "ratio", "n_init", "fitted_on", "shannon_bound"}
    assert set(told["rate_distortion"]) == fields
    assert (told["rate_distortion"]["fitted_on"], told["rate_distortion"]["shannon_bound"]) == (45, None)
    assert {name: told[name] for name in FIELDS} == evaluate(vqtool, catalogue.folder)


def test_rate_distortion_goes_with_other_data(catalogue: TrainedRun, vqtool: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", catalogue.array[:20])
    told = evaluate(vqtool, catalogue.folder, tmp_path / "few.npy", "--rate-distortion")["rate_distortion"]
    assert told == asdict(rate_distortion(load(catalogue.folder), str(tmp_path / "few.npy")))


def test_the_table_shows_rate_and_distortion(catalogue: TrainedRun, vqtool: Command) -> None:
    told = evaluate(vqtool, catalogue.folder, "--rate-distortion")["rate_distortion"]
    done = vqtool("eval", catalogue.folder, "--rate-distortion")
    rows = {line.split("  ")[0]: line for line in done.out.splitlines()}
    assert f"{told['error']:.4g}" in rows["quantization error"]
    assert f"{told['reference']:.4g}" in rows["reference"]
    assert f"{told['ratio']:.3f}" in rows["error / reference"]
    assert "Shannon bound" not in rows
    assert "quantization error" not in vqtool("eval", catalogue.folder).out


def test_without_a_reference_it_is_null(vqtool: Command, tmp_path: Path) -> None:
    quantizer = {"kind": "vector", "codebook_size": 32}
    run = make_run(tmp_path, normal(24, 3), IDENTITY, quantizer=quantizer)
    told = evaluate(vqtool, run, "--rate-distortion")["rate_distortion"]
    assert (told["reference"], told["ratio"], told["fitted_on"]) == (None, None, 18)
    done = vqtool("eval", run, "--rate-distortion")
    assert "fewer training latents than codes" in done.out
