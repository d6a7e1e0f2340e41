"""`vqtool inspect`."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import TRANSFORMER, make_run, normal
from tests.conftest import Result, TrainedRun
from vqtool.config import load_config
from vqtool.inference.tokenizer import load
from vqtool.inference.transcode import encode_file, encode_unique_file

Command = Callable[..., Result]

LEVEL = {"codebook_size", "used", "usage", "expected_used", "perplexity", "entropy_bits", "dead", "counts"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tokens(trained: TrainedRun, tmp_path: Path) -> np.ndarray:
    """The indices of some images, in tokens.npy."""
    np.save("few.npy", trained.array[:9])
    encode_file(load(trained.folder), tmp_path / "tokens.npy", "few.npy")
    return np.load("tokens.npy")


def inspect(vqtool: Command, *arguments: object) -> dict[str, Any]:
    done = vqtool("inspect", *arguments, "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    return json.loads(done.out)


def test_an_index_file_has_the_counts_of_its_indices(tokens: np.ndarray, vqtool: Command) -> None:
    told = inspect(vqtool, "tokens.npy")
    (level,) = told["levels"]
    counts = np.bincount(tokens.reshape(-1), minlength=16)
    p = counts[counts > 0] / counts.sum()
    entropy = -(p * np.log2(p)).sum()
    assert set(told) == {"target", "tokens", "collision_rate", "levels", "findings"}
    assert told["collision_rate"] is None  # images have many tokens, and no id
    assert (told["target"], told["tokens"]) == ("tokens.npy", 9 * 16)
    assert set(level) == LEVEL
    assert level["counts"] == counts.tolist()
    assert (level["codebook_size"], level["used"], level["dead"]) == (16, len(p), 16 - len(p))
    assert level["usage"] == len(p) / 16
    assert level["expected_used"] == pytest.approx(16 * (1 - (15 / 16) ** 144))
    assert level["entropy_bits"] == pytest.approx(entropy)
    assert level["perplexity"] == pytest.approx(2**entropy)


def test_data_are_counted_as_their_index_file_is(tokens: np.ndarray, trained: TrainedRun, vqtool: Command) -> None:
    of_data = inspect(vqtool, trained.folder, "--data", "few.npy")
    of_file = inspect(vqtool, "tokens.npy")
    assert of_data["target"] == str(trained.folder)
    assert {**of_data, "target": ""} == {**of_file, "target": ""}


def test_a_run_has_the_counts_of_its_best_validation_pass(trained: TrainedRun, vqtool: Command) -> None:
    told = inspect(vqtool, trained.folder)
    (level,) = told["levels"]
    best = json.loads((trained.folder / "summary.json").read_text())["best"]
    assert told["tokens"] == sum(level["counts"]) == 6 * 16
    for figure in ("usage", "perplexity", "dead", "expected_used"):
        assert level[figure] == pytest.approx(best[f"codebook/{figure}"], rel=1e-12)
    assert level["entropy_bits"] / math.log2(16) == pytest.approx(best["codebook/entropy"], rel=1e-12)
    assert json.loads(vqtool("eval", trained.folder, "--json").out)["levels"] == [level]


def test_a_run_is_inspected_without_its_data(trained: TrainedRun, vqtool: Command) -> None:
    shutil.copytree(trained.folder, "run")
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace(str(trained.data), "/gone/away.npy"))
    assert inspect(vqtool, "run")["tokens"] == 96


def test_a_config_that_cannot_be_read_is_named(trained: TrainedRun, vqtool: Command, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "copy")
    config = tmp_path / "copy" / "config.yaml"
    config.write_text(config.read_text().replace("format_version: 1", "format_version: 2"))
    done = vqtool("inspect", "copy")
    assert done.code == 0
    line = next(line for line in done.out.splitlines() if "config.yaml" in line)
    assert "format_version" in line


def test_several_targets_are_one_object(tokens: np.ndarray, trained: TrainedRun, vqtool: Command) -> None:
    told = inspect(vqtool, trained.folder, "tokens.npy")
    assert set(told) == {"targets", "skipped"}
    assert told["skipped"] == []
    assert told["targets"] == [inspect(vqtool, trained.folder), inspect(vqtool, "tokens.npy")]


def test_a_folder_of_runs_is_all_its_runs_by_name(trained: TrainedRun, vqtool: Command) -> None:
    for name in ("b", "a", "[red]c"):
        shutil.copytree(trained.folder, f"runs/{name}")
    Path("runs/notes").mkdir()
    told = inspect(vqtool, "runs")["targets"]
    assert [target["target"] for target in told] == ["runs/[red]c", "runs/a", "runs/b"]
    done = vqtool("inspect", "runs")
    assert [line for line in done.out.splitlines() if line.startswith("runs/")] == ["runs/[red]c", "runs/a", "runs/b"]


@pytest.fixture
def damaged(trained: TrainedRun) -> str:
    """A folder of runs, one of which is cut short; and why that cannot be used."""
    for name in ("a", "b", "c"):
        shutil.copytree(trained.folder, f"runs/{name}")
    model = Path("runs/b/model.safetensors")
    model.write_bytes(model.read_bytes()[:-9])
    return "runs/b/model.safetensors"


def test_a_damaged_run_of_a_folder_does_not_hide_the_others(damaged: str, vqtool: Command) -> None:
    done = vqtool("inspect", "runs")
    assert done.code == 0
    assert [line for line in done.out.splitlines() if line.startswith("runs/")] == ["runs/a", "runs/c"]
    assert "comparison:" in done.out
    (line,) = done.err.splitlines()
    assert line.startswith(f"vqtool: skipped runs/b: {damaged}")
    for extra in ([], ["--report", "page.html"]):
        done = vqtool("inspect", "runs", "--json", *extra)
        assert (done.code, done.err) == (0, f"{line}\n")
        told = json.loads(done.out)
        assert [each["target"] for each in told["targets"]] == ["runs/a", "runs/c"]
        (fault,) = told["skipped"]
        assert fault["target"] == "runs/b"
        assert line == f"vqtool: skipped runs/b: {fault['error']}"
    assert f"{line.removeprefix('vqtool: ')}." in Path("page.html").read_text().replace("&#39;", "'")


def test_a_damaged_run_that_is_named_is_2(damaged: str, vqtool: Command) -> None:
    shutil.copytree("runs/b", "all/b")
    for targets in (["runs/b"], ["runs/a", "runs/b"], ["all"]):
        done = vqtool("inspect", *targets)
        assert (done.code, done.out) == (2, "")
        assert "b/model.safetensors" in done.err


def test_a_folder_with_one_good_run_left_has_the_fields_of_a_folder(damaged: str, vqtool: Command) -> None:
    shutil.rmtree("runs/c")
    told = json.loads(vqtool("inspect", "runs", "--json", "--report", "page.html").out)
    assert set(told) == {"targets", "skipped", "report"}
    assert [len(told["targets"]), len(told["skipped"])] == [1, 1]
    assert "1 target" in Path("page.html").read_text()


def test_the_text_shows_the_figures(trained: TrainedRun, vqtool: Command) -> None:
    (level,) = inspect(vqtool, trained.folder)["levels"]
    done = vqtool("inspect", trained.folder)
    assert (done.code, done.err) == (0, "")
    assert "best validation pass: 96 tokens" in done.out
    rows = {line.split("  ")[0]: line for line in done.out.splitlines()}
    assert f"{level['used']} ({level['usage']:.1%})" in rows["used"]
    assert f"{level['perplexity']:.1f}" in rows["perplexity"]
    assert f"{level['entropy_bits']:.3f} bits" in rows["entropy"]
    most = int(np.argmax(level["counts"]))
    assert f"{most}:{level['counts'][most]}" in rows["most used (code:hits)"]
    assert "codes by hits" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone: does not exist"),
        (["empty"], "empty: is neither a run, nor a directory of runs, nor an index file"),
        (["few.npy"], "few.npy: its manifest few.json"),
        (["tokens.npy", "--data", "few.npy"], "--data cannot be used with an index file (tokens.npy); omit --data"),
        (["run", "--data", "gone.npy"], "gone.npy: does not exist"),
        (["run", "--data", "colour.npy"], "rows have shape (3, 8, 8), but the model was trained on rows of"),
        (["tokens.npy", "gone"], "gone: does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_inspected_is_2(
    arguments: list[str], message: str, tokens: np.ndarray, trained: TrainedRun, vqtool: Command
) -> None:
    Path("empty").mkdir()
    np.save("colour.npy", np.zeros((4, 3, 8, 8), np.float32))
    shutil.copytree(trained.folder, "run")
    for extra in ([], ["--json"]):
        done = vqtool("inspect", *arguments, *extra)
        assert (done.code, done.out) == (2, "")
        assert message in done.err


def test_indices_beyond_the_codebook_are_named(tokens: np.ndarray, vqtool: Command) -> None:
    np.save("tokens.npy", tokens + 200)
    done = vqtool("inspect", "tokens.npy")
    assert (done.code, done.out) == (2, "")
    assert f"tokens.npy: damaged: contains index {tokens.max() + 200}, but valid indices are 0 to 15;" in done.err


# Levels and ids


def test_run_data_and_files_tell_one_collision_rate(catalogue: TrainedRun, vqtool: Command) -> None:
    ids = load(catalogue.folder).encode(catalogue.array).reshape(60, -1)
    rate = 1 - len(set(map(tuple, ids.tolist()))) / 60
    encode_file(load(catalogue.folder), Path("plain.npy"))
    encode_unique_file(load(catalogue.folder), Path("unique.npy"))
    of_data = inspect(vqtool, catalogue.folder, "--data", catalogue.data)
    assert 0 < of_data["collision_rate"] == rate
    counts = [np.bincount(level, minlength=4).tolist() for level in ids.T.numpy()]
    assert [level["counts"] for level in of_data["levels"]] == counts
    for file in ("plain.npy", "unique.npy"):  # what makes rows unique is left out
        assert {**inspect(vqtool, file), "target": ""} == {**of_data, "target": ""}


def test_a_run_tells_the_collision_rate_of_its_best_validation_pass(catalogue: TrainedRun, vqtool: Command) -> None:
    told = inspect(vqtool, catalogue.folder)
    best = json.loads((catalogue.folder / "summary.json").read_text())["best"]
    rate = json.loads(vqtool("eval", catalogue.folder, "--json").out)["collision_rate"]
    assert 0 < told["collision_rate"] == best["codebook/collision_rate"] == rate
    assert told["tokens"] == 15
    assert f"collision rate {rate:.4%}" in vqtool("inspect", catalogue.folder).out


def test_grids_of_classes_have_no_id(vqtool: Command, tmp_path: Path) -> None:
    grids = np.random.default_rng(0).integers(0, 5, (24, 12))
    run = make_run(tmp_path, grids, {**TRANSFORMER, "num_tokens": 3})
    encode_file(load(run), Path("grids.npy"))
    assert inspect(vqtool, run)["collision_rate"] is None
    assert inspect(vqtool, run, "--data", tmp_path / "data.npy")["collision_rate"] is None
    assert inspect(vqtool, "grids.npy")["collision_rate"] is None


def test_a_plain_file_that_is_said_to_be_unique_is_2(tokens: np.ndarray, vqtool: Command) -> None:
    Path("tokens.json").write_text(json.dumps(json.loads(Path("tokens.json").read_text()) | {"unique": True}))
    done = vqtool("inspect", "tokens.npy")
    assert (done.code, done.out) == (2, "")
    assert "tokens.json" in done.err


# The page, and several targets


def test_a_report_is_written_beside_the_text(tokens: np.ndarray, vqtool: Command) -> None:
    plain = vqtool("inspect", "tokens.npy")
    done = vqtool("inspect", "tokens.npy", "--report", "page.html")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{plain.out}\nreport: page.html\n"
    assert Path("page.html").read_text().startswith("<!doctype html>")
    again = vqtool("inspect", "tokens.npy", "--report", "page.html")
    assert (again.code, again.out) == (2, "")
    assert "page.html: already exists; use --overwrite to replace it" in again.err
    told = vqtool("inspect", "tokens.npy", "--report", "page.html", "--overwrite", "--json")
    assert json.loads(told.out) == {**inspect(vqtool, "tokens.npy"), "report": "page.html"}


def test_overwrite_goes_with_a_report(tokens: np.ndarray, vqtool: Command) -> None:
    done = vqtool("inspect", "tokens.npy", "--overwrite")
    assert (done.code, done.out) == (2, "")
    assert "--report" in done.err


def test_several_runs_are_compared_in_the_text(trained: TrainedRun, catalogue: TrainedRun, vqtool: Command) -> None:
    done = vqtool("inspect", trained.folder, catalogue.folder)
    compared = done.out[done.out.index("comparison:") :]
    assert "2 x 4" in compared
    assert "conv2d (1), identity (2)" in compared
    assert "comparison:" not in vqtool("inspect", trained.folder).out


def test_the_text_says_what_is_normal(trained: TrainedRun, vqtool: Command) -> None:
    out = " ".join(vqtool("inspect", trained.folder).out.split())
    assert "96 tokens are few for 16 codes" in out
    assert "batch of 256 tokens can use at most 16 codes" in out


# Findings


def test_findings_of_an_index_file_are_of_its_counts_alone(
    trained: TrainedRun, tmp_path: Path, vqtool: Command
) -> None:
    """One code for all of 30 x 16 tokens, of a codebook of 16."""
    np.save("few.npy", trained.array[:30])
    encode_file(load(trained.folder), tmp_path / "tokens.npy", "few.npy")
    np.save("tokens.npy", np.full_like(np.load("tokens.npy"), 3))
    told = inspect(vqtool, "tokens.npy")["findings"]
    assert [(each["name"], each["severity"]) for each in told] == [
        ("collapse", "severe"),
        ("dead_codes", "severe"),
        ("dominant_code", "warning"),
    ]
    for each in told:
        assert list(each) == ["name", "severity", "message", "evidence", "cause", "changes"]
        assert each["changes"] == []  # nothing is known of the settings
    assert told[1]["evidence"] == {"level": 0, "dead": 15, "never_hit": None, "last_hit": None, "tokens": 480}
    assert told[2]["evidence"] == {"level": 0, "code": 3, "share": 1.0}
    shown = vqtool("inspect", "tokens.npy").out
    assert "severe (dead_codes): 15 of 16 codes have no hits (30 tokens per code)" in shown


def test_findings_of_a_run_advise_keys_that_can_be_set(vqtool: Command) -> None:
    quantizer = {"kind": "vector", "codebook_size": 16, "dead_code_reset": None}
    run = make_run(Path.cwd(), normal(24, 4), {"kind": "mlp", "width": 8}, quantizer=quantizer)
    (told,) = [each for each in inspect(vqtool, run)["findings"] if each["name"] == "codebook_too_large"]
    assert told["severity"] == "warning"
    assert told["evidence"] == {"level": 0, "tokens_per_code": 18 / 16, "codebook_size": 16}
    for change in told["changes"]:
        assert list(change) == ["key", "value", "why"]
        set_it = ["--set", f"{change['key']}={change['value']}", "--dry-run"]
        assert vqtool("train", "--config", run / "config.yaml", "--run-dir", "other", *set_it).code == 0


def test_every_change_that_a_finding_can_advise_can_be_set(trained: TrainedRun) -> None:
    """Values are YAML, and blocks of another kind take the place of those that were."""
    for key, value in (
        ("model.quantizer.init.kind", "kmeans"),
        ("model.quantizer.update.kind", "codebook_loss"),
        ("model.quantizer.dead_code_reset", "{min_hits: 5}"),
        ("model.quantizer.temperature_unit", "quantization_error"),
    ):
        load_config(trained.config, [f"{key}={value}"])
