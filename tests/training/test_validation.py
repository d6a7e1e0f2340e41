"""Validation during training: metrics by tag, and findings, which are logged and can stop the run."""

from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from tests.conftest import TrainedRun
from tests.training import logged_metrics, stop_in_step, tiny_settings
from vqtool import load
from vqtool.config import RunSettings
from vqtool.data import open_dataset
from vqtool.errors import Stopped, TrainingError
from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Finding
from vqtool.runs.checkpoint import load_checkpoint
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train
from vqtool.training import validation as validator

USAGE_METRICS = {"usage", "perplexity", "entropy", "soft_entropy", "sample_entropy", "dead", "expected_used"}
CODE_METRICS = {"error", "spread", "outside", "duplicates", "halving", "never_hit"}
# Only if training lost a code.
OPTIONAL = {"codebook/last_hit", "codebook/level_0/last_hit", "codebook/level_1/last_hit"}


def test_each_level_has_its_own_tags(catalogue: TrainedRun) -> None:
    last = logged_metrics(catalogue.folder)[-1]
    tags = {f"codebook/{prefix}{name}" for prefix in ("", "level_0/", "level_1/") for name in USAGE_METRICS}
    tags |= {f"codebook/level_{level}/{name}" for level in (0, 1) for name in CODE_METRICS}
    logged = {tag for tag in last if tag.startswith("codebook/")}
    assert logged - OPTIONAL == tags | {"codebook/collision_rate"}
    for name in USAGE_METRICS:
        levels = [last[f"codebook/level_{level}/{name}"] for level in range(2)]
        assert last[f"codebook/{name}"] == pytest.approx(fmean(levels), rel=1e-12)
    evaluation = load(catalogue.folder).evaluate().evaluation
    for level, usage in enumerate(evaluation.levels):
        for name in ("usage", "perplexity", "entropy", "dead"):
            assert last[f"codebook/level_{level}/{name}"] == getattr(usage, name)
    assert evaluation.levels[0] != evaluation.levels[1]


def test_single_level_has_no_level_tags(tmp_path) -> None:
    train(tiny_settings(tmp_path), tmp_path / "run")
    last = logged_metrics(tmp_path / "run")[-1]
    tags = {f"codebook/{name}" for name in (*USAGE_METRICS, *CODE_METRICS, "movement")} | {"codebook/collision_rate"}
    assert {tag for tag in last if tag.startswith("codebook/")} - OPTIONAL == tags


def test_collision_rate_is_that_of_the_validation_split(catalogue: TrainedRun) -> None:
    tokenizer = load(catalogue.folder)
    validation = open_dataset(tokenizer.settings.data, tokenizer.settings.seed).validation
    ids = tokenizer.encode(validation.read(0, len(validation))).reshape(15, 2).tolist()
    rate = 1 - len(set(map(tuple, ids))) / 15
    assert 0 < logged_metrics(catalogue.folder)[-1]["codebook/collision_rate"] == rate


def test_images_have_no_collision_rate(trained: TrainedRun) -> None:
    assert not any("collision" in tag for line in logged_metrics(trained.folder) for tag in line)


@pytest.mark.parametrize("shared", [True, False])
def test_levels_with_a_shared_codebook_share_its_metrics(shared: bool, tmp_path: Path) -> None:
    """Error and usage belong to a level; positions, movement and hits of the codes to the codebook."""
    run = tiny_settings(tmp_path).model_dump(mode="json")
    level = {"kind": "vector", "codebook_size": 8}
    quantizer = {"kind": "residual", "levels": 2, "shared": shared, "quantizer": level}
    run["model"] = {"encoder": {"kind": "identity"}, "quantizer": quantizer}
    train(RunSettings.model_validate(run), tmp_path / "run")
    first, second = (
        {
            tag.split("/")[2]: value
            for tag, value in logged_metrics(tmp_path / "run")[-1].items()
            if f"/level_{level}/" in tag
        }
        for level in (0, 1)
    )
    differing = {name for name in first.keys() & second.keys() if first[name] != second[name]}
    assert {"error", "perplexity"} <= differing
    assert ({"spread", "halving", "movement"} <= differing) == (not shared)
    if shared:
        saved, _ = read_model(RunDirectory(tmp_path / "run").model)
        assert not differing & {"spread", "outside", "duplicates", "halving", "movement", "never_hit", "last_hit"}
        assert first["never_hit"] <= int(((saved.counts[0] + saved.counts[1]) == 0).sum())


# Findings


def finding(name: str, severity: Any = "warning") -> Finding:
    return Finding(name, severity, f"{name} is so", {}, "why")


@pytest.fixture
def fake_diagnose(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[int, list[Finding]], list[Evidence]]:
    """Replace `diagnose`. Return the findings by step, to be filled in by the test, and the evidence it was given."""
    findings: dict[int, list[Finding]] = {}
    diagnosed: list[Evidence] = []

    def diagnose(evidence: Evidence) -> list[Finding]:
        diagnosed.append(evidence)
        return findings.get(evidence.history[-1]["step"], [])

    monkeypatch.setattr(validator, "diagnose", diagnose)
    return findings, diagnosed


def settings(folder: Path, **training: Any) -> RunSettings:
    return tiny_settings(folder, **{"validate_every": 2, "checkpoint_every": 2, **training})


def finding_lines(lines: list[str]) -> list[str]:
    return [line for line in lines if "is so" in line]


def test_finding_is_logged_when_it_appears(tmp_path: Path, fake_diagnose: Any) -> None:
    fake_diagnose[0].update(
        {4: [finding("one")], 6: [finding("one"), finding("two", "note")], 8: [finding("two", "note")]}
    )
    lines: list[str] = []
    train(settings(tmp_path, steps=10), tmp_path / "run", log=lines.append)
    assert finding_lines(lines) == ["step 4: warning: one is so", "step 6: note: two is so"]
    logged = {line["step"]: line.get("findings") for line in logged_metrics(tmp_path / "run") if line["step"] % 2 == 0}
    assert logged[6] == [
        {"name": "one", "severity": "warning", "message": "one is so"},
        {"name": "two", "severity": "note", "message": "two is so"},
    ]
    assert not logged[2]
    assert not logged[10]


def test_finding_that_reappears_is_logged_again(tmp_path: Path, fake_diagnose: Any) -> None:
    fake_diagnose[0].update({2: [finding("one")], 6: [finding("one")]})
    lines: list[str] = []
    train(settings(tmp_path), tmp_path / "run", log=lines.append)
    assert finding_lines(lines) == ["step 2: warning: one is so", "step 6: warning: one is so"]


def test_history_is_complete_after_resuming(
    tmp_path: Path, fake_diagnose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_diagnose[0].update({step: [finding("one")] for step in (2, 4, 6, 8)})
    run = settings(tmp_path)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 5)
        with pytest.raises(Stopped):
            train(run, tmp_path / "run")
    lines: list[str] = []
    train(run, tmp_path / "run", resume=True, log=lines.append)
    assert finding_lines(lines) == []  # the validation before the stop had it, too
    last = fake_diagnose[1][-1].history
    assert [metrics["step"] for metrics in last] == [2, 4, 6, 8]
    assert all("codebook/movement" in metrics for metrics in last[1:])
    (tmp_path / "uninterrupted").mkdir()
    train(settings(tmp_path / "uninterrupted"), tmp_path / "uninterrupted" / "run")
    uninterrupted = fake_diagnose[1][-1].history
    for resumed, direct in zip(last, uninterrupted, strict=True):
        tags = [tag for tag in direct if tag.startswith(("codebook", "validation"))]
        assert [resumed[tag] for tag in tags] == [direct[tag] for tag in tags]


def test_repeated_severe_finding_stops_the_run_with_stop_on_severe(tmp_path: Path, fake_diagnose: Any) -> None:
    """The message names only the finding that both validations have."""
    both = [finding("one", "severe"), finding("two", "severe")]
    fake_diagnose[0].update({4: [finding("one", "severe")], 6: both[1:], 8: both})
    with pytest.raises(TrainingError, match=r"step 8: .*\(two is so\).*checkpoint"):
        train(settings(tmp_path, steps=12, stop_on_severe=True), tmp_path / "run")
    state = load_checkpoint(RunDirectory(tmp_path / "run"), lambda line: None)
    assert state is not None
    assert state.step == 8
    assert [line["step"] for line in RunDirectory(tmp_path / "run").read_validations()] == [2, 4, 6, 8]


def test_different_severe_findings_do_not_stop_the_run(tmp_path: Path, fake_diagnose: Any) -> None:
    """Nor does a severe finding that was a warning in the previous validation."""
    fake_diagnose[0].update(
        {4: [finding("one", "severe"), finding("two")], 6: [finding("two", "severe")], 8: [finding("one")]}
    )
    assert train(settings(tmp_path, stop_on_severe=True), tmp_path / "run")["best_step"]


@pytest.mark.parametrize(("warmup_steps", "stop_step"), [(3, 6), (4, 8), (8, None)])
def test_severe_findings_during_warmup_do_not_stop_the_run(
    warmup_steps: int, stop_step: int | None, tmp_path: Path, fake_diagnose: Any
) -> None:
    fake_diagnose[0].update({step: [finding("one", "severe")] for step in (2, 4, 6, 8)})
    run = settings(tmp_path, stop_on_severe=True, warmup_steps=warmup_steps)
    if stop_step is None:
        assert train(run, tmp_path / "run")["best_step"]
        return
    with pytest.raises(TrainingError, match=rf"step {stop_step}: .*severe.*one is so"):
        train(run, tmp_path / "run")


def test_severe_findings_do_not_stop_the_run_by_default(tmp_path: Path, fake_diagnose: Any) -> None:
    fake_diagnose[0].update({step: [finding("one", "severe")] for step in (2, 4, 6, 8)})
    assert train(settings(tmp_path), tmp_path / "run")["best_step"]


def test_repeated_warnings_do_not_stop_the_run(tmp_path: Path, fake_diagnose: Any) -> None:
    fake_diagnose[0].update({step: [finding("one")] for step in (2, 4, 6, 8)})
    assert train(settings(tmp_path, stop_on_severe=True), tmp_path / "run")["best_step"]


def test_single_validation_sample_has_no_shuffled_loss(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones((1, 4), np.float32))
    random = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    train(tiny_settings(tmp_path, random, data={"validation": str(tmp_path / "one.npy")}), tmp_path / "run")
    last = RunDirectory(tmp_path / "run").read_validations()[-1]
    assert "validation/loss/reconstruction" in last
    assert not any("shuffled" in tag for tag in last)


def test_training_tokens_are_samples_times_tokens_per_sample(tmp_path: Path, fake_diagnose: Any) -> None:
    encoder = {"kind": "mlp", "width": 8, "num_tokens": 3}
    train(tiny_settings(tmp_path, encoder=encoder), tmp_path / "run")
    assert fake_diagnose[1][-1].training_tokens == 48 * 3
