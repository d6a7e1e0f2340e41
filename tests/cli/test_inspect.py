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
from tests.cli import mentions
from tests.conftest import Result, TrainedRun
from vqtool.config import load_config
from vqtool.inference.encode import encode_file
from vqtool.inference.semantic_ids import encode_unique_file
from vqtool.inference.tokenizer import load

Command = Callable[..., Result]

LEVEL = {"codebook_size", "used", "usage", "expected_used", "perplexity", "entropy_bits", "dead", "counts"}


@pytest.fixture(autouse=True)
def _workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tokens(trained: TrainedRun, tmp_path: Path) -> np.ndarray:
    """The indices of nine images, written to tokens.npy."""
    np.save("few.npy", trained.array[:9])
    encode_file(load(trained.folder), tmp_path / "tokens.npy", "few.npy")
    return np.load("tokens.npy")


def inspect(vqtool: Command, *arguments: object) -> dict[str, Any]:
    result = vqtool("inspect", *arguments, "--json")
    assert (result.code, result.err, result.out.count("\n")) == (0, "", 1)
    return json.loads(result.out)


def test_index_file_has_the_counts_of_its_indices(tokens: np.ndarray, vqtool: Command) -> None:
    fields = inspect(vqtool, "tokens.npy")
    (level,) = fields["levels"]
    counts = np.bincount(tokens.reshape(-1), minlength=16)
    p = counts[counts > 0] / counts.sum()
    entropy = -(p * np.log2(p)).sum()
    assert set(fields) == {"target", "tokens", "collision_rate", "levels", "findings"}
    assert fields["collision_rate"] is None  # images have many tokens per sample, not one id
    assert (fields["target"], fields["tokens"]) == ("tokens.npy", 9 * 16)
    assert set(level) == LEVEL
    assert level["counts"] == counts.tolist()
    assert (level["codebook_size"], level["used"], level["dead"]) == (16, len(p), 16 - len(p))
    assert level["usage"] == len(p) / 16
    assert level["expected_used"] == pytest.approx(16 * (1 - (15 / 16) ** 144))
    assert level["entropy_bits"] == pytest.approx(entropy)
    assert level["perplexity"] == pytest.approx(2**entropy)


def test_data_option_gives_the_result_of_the_index_file(
    tokens: np.ndarray, trained: TrainedRun, vqtool: Command
) -> None:
    of_data = inspect(vqtool, trained.folder, "--data", "few.npy")
    of_file = inspect(vqtool, "tokens.npy")
    assert of_data["target"] == str(trained.folder)
    assert {**of_data, "target": ""} == {**of_file, "target": ""}


def test_run_has_the_counts_of_its_best_validation(trained: TrainedRun, vqtool: Command) -> None:
    fields = inspect(vqtool, trained.folder)
    (level,) = fields["levels"]
    best = json.loads((trained.folder / "summary.json").read_text())["best"]
    assert fields["tokens"] == sum(level["counts"]) == 6 * 16
    for name in ("usage", "perplexity", "dead", "expected_used"):
        assert level[name] == pytest.approx(best[f"codebook/{name}"], rel=1e-12)
    assert level["entropy_bits"] / math.log2(16) == pytest.approx(best["codebook/entropy"], rel=1e-12)
    assert json.loads(vqtool("eval", trained.folder, "--json").out)["levels"] == [level]


def test_run_is_inspected_without_its_data(trained: TrainedRun, vqtool: Command) -> None:
    shutil.copytree(trained.folder, "run")
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace(str(trained.data), "/gone/away.npy"))
    assert inspect(vqtool, "run")["tokens"] == 96


def test_unreadable_config_of_a_run_is_reported(trained: TrainedRun, vqtool: Command, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "copy")
    config = tmp_path / "copy" / "config.yaml"
    config.write_text(config.read_text().replace("format_version: 1", "format_version: 2"))
    result = vqtool("inspect", "copy")
    assert result.code == 0
    line = next(line for line in result.out.splitlines() if "config.yaml" in line)
    assert "format_version" in line


def test_json_of_several_targets_is_one_object(tokens: np.ndarray, trained: TrainedRun, vqtool: Command) -> None:
    fields = inspect(vqtool, trained.folder, "tokens.npy")
    assert set(fields) == {"targets", "skipped"}
    assert fields["skipped"] == []
    assert fields["targets"] == [inspect(vqtool, trained.folder), inspect(vqtool, "tokens.npy")]


def test_directory_of_runs_is_inspected_in_order_of_names(trained: TrainedRun, vqtool: Command) -> None:
    for name in ("b", "a", "[red]c"):
        shutil.copytree(trained.folder, f"runs/{name}")
    Path("runs/notes").mkdir()
    fields = inspect(vqtool, "runs")["targets"]
    assert [target["target"] for target in fields] == ["runs/[red]c", "runs/a", "runs/b"]
    result = vqtool("inspect", "runs")
    assert [line for line in result.out.splitlines() if line.startswith("runs/")] == ["runs/[red]c", "runs/a", "runs/b"]


@pytest.fixture
def damaged(trained: TrainedRun) -> str:
    """Create a directory of three runs, and return the path of the truncated model of one of them."""
    for name in ("a", "b", "c"):
        shutil.copytree(trained.folder, f"runs/{name}")
    model = Path("runs/b/model.safetensors")
    model.write_bytes(model.read_bytes()[:-9])
    return "runs/b/model.safetensors"


def test_damaged_run_in_a_directory_is_skipped_with_a_message(damaged: str, vqtool: Command) -> None:
    result = vqtool("inspect", "runs")
    assert result.code == 0
    assert [line for line in result.out.splitlines() if line.startswith("runs/")] == ["runs/a", "runs/c"]
    assert "comparison:" in result.out
    (line,) = result.err.splitlines()
    assert line.startswith(f"vqtool: skipped runs/b: {damaged}")
    for extra in ([], ["--report", "page.html"]):
        result = vqtool("inspect", "runs", "--json", *extra)
        assert (result.code, result.err) == (0, f"{line}\n")
        fields = json.loads(result.out)
        assert [target["target"] for target in fields["targets"]] == ["runs/a", "runs/c"]
        (fault,) = fields["skipped"]
        assert fault["target"] == "runs/b"
        assert line == f"vqtool: skipped runs/b: {fault['error']}"
    assert f"{line.removeprefix('vqtool: ')}." in Path("page.html").read_text().replace("&#39;", "'")


def test_damaged_run_as_a_target_exits_with_2(damaged: str, vqtool: Command) -> None:
    shutil.copytree("runs/b", "all/b")
    for targets in (["runs/b"], ["runs/a", "runs/b"], ["all"]):
        result = vqtool("inspect", *targets)
        assert (result.code, result.out) == (2, "")
        assert "b/model.safetensors" in result.err


def test_json_of_a_directory_with_one_usable_run_has_targets_and_skipped(damaged: str, vqtool: Command) -> None:
    shutil.rmtree("runs/c")
    fields = json.loads(vqtool("inspect", "runs", "--json", "--report", "page.html").out)
    assert set(fields) == {"targets", "skipped", "report"}
    assert [len(fields["targets"]), len(fields["skipped"])] == [1, 1]
    assert "1 target" in Path("page.html").read_text()


def test_text_shows_the_values_of_json(trained: TrainedRun, vqtool: Command) -> None:
    (level,) = inspect(vqtool, trained.folder)["levels"]
    result = vqtool("inspect", trained.folder)
    assert (result.code, result.err) == (0, "")
    assert mentions(result.out, "validation ... 96 tokens")
    rows = {line.split("  ")[0]: line for line in result.out.splitlines()}
    assert f"{level['used']} ({level['usage']:.1%})" in rows["used"]
    assert f"{level['perplexity']:.1f}" in rows["perplexity"]
    assert f"{level['entropy_bits']:.3f} bits" in rows["entropy"]
    top_code = int(np.argmax(level["counts"]))
    assert f"{top_code}:{level['counts'][top_code]}" in rows["most used (code:hits)"]
    assert "codes by hits" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone: does not exist"),
        (["empty"], "empty: ... run ... index file"),
        (["few.npy"], "few.npy ... manifest few.json"),
        (["tokens.npy", "--data", "few.npy"], "--data ... tokens.npy"),
        (["run", "--data", "gone.npy"], "gone.npy: does not exist"),
        (["run", "--data", "colour.npy"], "(3, 8, 8) ... (1, 8, 8)"),
        (["tokens.npy", "gone"], "gone: does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_input_exits_with_2(
    arguments: list[str], message: str, tokens: np.ndarray, trained: TrainedRun, vqtool: Command
) -> None:
    Path("empty").mkdir()
    np.save("colour.npy", np.zeros((4, 3, 8, 8), np.float32))
    shutil.copytree(trained.folder, "run")
    for extra in ([], ["--json"]):
        result = vqtool("inspect", *arguments, *extra)
        assert (result.code, result.out) == (2, "")
        assert mentions(result.err, message)


def test_index_out_of_range_exits_with_2(tokens: np.ndarray, vqtool: Command) -> None:
    np.save("tokens.npy", tokens + 200)
    result = vqtool("inspect", "tokens.npy")
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, f"tokens.npy: damaged ... index {tokens.max() + 200} ... 0 to 15")


# Levels and ids


def test_run_data_and_index_files_have_the_same_collision_rate(catalogue: TrainedRun, vqtool: Command) -> None:
    ids = load(catalogue.folder).encode(catalogue.array).reshape(60, -1)
    rate = 1 - len(set(map(tuple, ids.tolist()))) / 60
    encode_file(load(catalogue.folder), Path("plain.npy"))
    encode_unique_file(load(catalogue.folder), Path("unique.npy"))
    of_data = inspect(vqtool, catalogue.folder, "--data", catalogue.data)
    assert 0 < of_data["collision_rate"] == rate
    counts = [np.bincount(level, minlength=4).tolist() for level in ids.T.numpy()]
    assert [level["counts"] for level in of_data["levels"]] == counts
    for file in ("plain.npy", "unique.npy"):  # the level of --unique does not count
        assert {**inspect(vqtool, file), "target": ""} == {**of_data, "target": ""}


def test_run_has_the_collision_rate_of_its_best_validation(catalogue: TrainedRun, vqtool: Command) -> None:
    fields = inspect(vqtool, catalogue.folder)
    best = json.loads((catalogue.folder / "summary.json").read_text())["best"]
    rate = json.loads(vqtool("eval", catalogue.folder, "--json").out)["collision_rate"]
    assert 0 < fields["collision_rate"] == best["codebook/collision_rate"] == rate
    assert fields["tokens"] == 15
    assert f"collision rate {rate:.4%}" in vqtool("inspect", catalogue.folder).out


def test_grids_of_classes_have_no_collision_rate(vqtool: Command, tmp_path: Path) -> None:
    grids = np.random.default_rng(0).integers(0, 5, (24, 12))
    run = make_run(tmp_path, grids, {**TRANSFORMER, "num_tokens": 3})
    encode_file(load(run), Path("grids.npy"))
    assert inspect(vqtool, run)["collision_rate"] is None
    assert inspect(vqtool, run, "--data", tmp_path / "data.npy")["collision_rate"] is None
    assert inspect(vqtool, "grids.npy")["collision_rate"] is None


def test_index_file_with_a_wrong_unique_key_exits_with_2(tokens: np.ndarray, vqtool: Command) -> None:
    Path("tokens.json").write_text(json.dumps(json.loads(Path("tokens.json").read_text()) | {"unique": True}))
    result = vqtool("inspect", "tokens.npy")
    assert (result.code, result.out) == (2, "")
    assert "tokens.json" in result.err


# HTML report and several targets


def test_report_option_also_writes_an_html_page(tokens: np.ndarray, vqtool: Command) -> None:
    plain = vqtool("inspect", "tokens.npy")
    result = vqtool("inspect", "tokens.npy", "--report", "page.html")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(plain.out)
    assert "page.html" in result.out.removeprefix(plain.out)
    assert Path("page.html").read_text().startswith("<!doctype html>")
    again = vqtool("inspect", "tokens.npy", "--report", "page.html")
    assert (again.code, again.out) == (2, "")
    assert mentions(again.err, "page.html ... exists ... --overwrite")
    fields = vqtool("inspect", "tokens.npy", "--report", "page.html", "--overwrite", "--json")
    assert json.loads(fields.out) == {**inspect(vqtool, "tokens.npy"), "report": "page.html"}


def test_overwrite_needs_report(tokens: np.ndarray, vqtool: Command) -> None:
    result = vqtool("inspect", "tokens.npy", "--overwrite")
    assert (result.code, result.out) == (2, "")
    assert "--report" in result.err


def test_text_compares_several_runs(trained: TrainedRun, catalogue: TrainedRun, vqtool: Command) -> None:
    result = vqtool("inspect", trained.folder, catalogue.folder)
    comparison = result.out[result.out.index("comparison:") :]
    assert "2 x 4" in comparison
    (line,) = [line for line in comparison.splitlines() if line.startswith("model.encoder.kind")]
    assert mentions(line, "conv2d (1) ... identity (2)")
    assert "comparison:" not in vqtool("inspect", trained.folder).out


def test_text_explains_expected_usage(trained: TrainedRun, vqtool: Command) -> None:
    out = " ".join(vqtool("inspect", trained.folder).out.split())
    assert mentions(out, "96 tokens ... few ... 16 codes")
    assert mentions(out, "256 tokens ... at most 16 codes")


# Findings


def test_findings_of_an_index_file_come_from_its_counts(trained: TrainedRun, tmp_path: Path, vqtool: Command) -> None:
    """All 30 x 16 tokens have the same code, of a codebook of 16."""
    np.save("few.npy", trained.array[:30])
    encode_file(load(trained.folder), tmp_path / "tokens.npy", "few.npy")
    np.save("tokens.npy", np.full_like(np.load("tokens.npy"), 3))
    findings = inspect(vqtool, "tokens.npy")["findings"]
    assert [(finding["name"], finding["severity"]) for finding in findings] == [
        ("collapse", "severe"),
        ("dead_codes", "severe"),
        ("dominant_code", "warning"),
    ]
    for finding in findings:
        assert list(finding) == ["name", "severity", "message", "evidence", "cause", "changes"]
        assert finding["changes"] == []  # the settings are unknown
    assert findings[1]["evidence"] == {"level": 0, "dead": 15, "never_hit": None, "last_hit": None, "tokens": 480}
    assert findings[2]["evidence"] == {"level": 0, "code": 3, "share": 1.0}
    assert mentions(vqtool("inspect", "tokens.npy").out, "severe (dead_codes): 15 of 16 ... 30 tokens per code")


def test_changes_of_a_finding_can_be_set_with_set(vqtool: Command) -> None:
    quantizer = {"kind": "vector", "codebook_size": 16, "dead_code_reset": None}
    run = make_run(Path.cwd(), normal(24, 4), {"kind": "mlp", "width": 8}, quantizer=quantizer)
    (finding,) = [finding for finding in inspect(vqtool, run)["findings"] if finding["name"] == "codebook_too_large"]
    assert finding["severity"] == "warning"
    assert finding["evidence"] == {"level": 0, "tokens_per_code": 18 / 16, "codebook_size": 16}
    for change in finding["changes"]:
        assert list(change) == ["key", "value", "why"]
        set_it = ["--set", f"{change['key']}={change['value']}", "--dry-run"]
        assert vqtool("train", "--config", run / "config.yaml", "--run-dir", "other", *set_it).code == 0


def test_every_change_that_findings_suggest_is_a_valid_override(trained: TrainedRun) -> None:
    """Values are YAML; setting another kind replaces the block."""
    for key, value in (
        ("model.quantizer.init.kind", "kmeans"),
        ("model.quantizer.update.kind", "codebook_loss"),
        ("model.quantizer.dead_code_reset", "{min_hits: 5}"),
        ("model.quantizer.temperature_unit", "quantization_error"),
    ):
        load_config(trained.config, [f"{key}={value}"])
