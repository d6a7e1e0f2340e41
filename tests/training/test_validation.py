"""Findings in training: said when they appear, logged with each validation, and a reason to stop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import logged, stop_in_step, tiny
from vqtool.config import RunSettings
from vqtool.errors import Stopped, TrainingError
from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Finding
from vqtool.runs.checkpoint import load_checkpoint
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train
from vqtool.training import validation as validator


def found(name: str, severity: Any = "warning") -> Finding:
    return Finding(name, severity, f"{name} is so", {}, "why")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[int, list[Finding]], list[Evidence]]:
    """What is found at which step, to be filled; and the evidence that was asked about."""
    findings: dict[int, list[Finding]] = {}
    seen: list[Evidence] = []

    def diagnose(evidence: Evidence) -> list[Finding]:
        seen.append(evidence)
        return findings.get(evidence.history[-1]["step"], [])

    monkeypatch.setattr(validator, "diagnose", diagnose)
    return findings, seen


def settings(folder: Path, **training: Any) -> RunSettings:
    return tiny(folder, **{"validate_every": 2, "checkpoint_every": 2, **training})


def lines(said: list[str]) -> list[str]:
    return [line for line in said if "is so" in line]


def test_a_finding_is_said_when_it_appears(tmp_path: Path, script: Any) -> None:
    script[0].update({4: [found("one")], 6: [found("one"), found("two", "note")], 8: [found("two", "note")]})
    said: list[str] = []
    train(settings(tmp_path, steps=10), tmp_path / "run", say=said.append)
    assert lines(said) == ["step 4: warning: one is so", "step 6: note: two is so"]
    told = {line["step"]: line.get("findings") for line in logged(tmp_path / "run") if line["step"] % 2 == 0}
    assert told[6] == [
        {"name": "one", "severity": "warning", "message": "one is so"},
        {"name": "two", "severity": "note", "message": "two is so"},
    ]
    assert not told[2]
    assert not told[10]


def test_a_finding_that_went_and_came_is_said_again(tmp_path: Path, script: Any) -> None:
    script[0].update({2: [found("one")], 6: [found("one")]})
    said: list[str] = []
    train(settings(tmp_path), tmp_path / "run", say=said.append)
    assert lines(said) == ["step 2: warning: one is so", "step 6: warning: one is so"]


def test_the_history_is_whole_and_whole_again_after_resuming(
    tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script[0].update({step: [found("one")] for step in (2, 4, 6, 8)})
    run = settings(tmp_path)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 5)
        with pytest.raises(Stopped):
            train(run, tmp_path / "run")
    said: list[str] = []
    train(run, tmp_path / "run", resume=True, say=said.append)
    assert lines(said) == []  # it was known before
    last = script[1][-1].history
    assert [metrics["step"] for metrics in last] == [2, 4, 6, 8]
    assert all("codebook/movement" in metrics for metrics in last[1:])
    (tmp_path / "straight").mkdir()
    train(settings(tmp_path / "straight"), tmp_path / "straight" / "run")
    straight = script[1][-1].history
    for resumed, direct in zip(last, straight, strict=True):
        tags = [tag for tag in direct if tag.startswith(("codebook", "validation"))]
        assert [resumed[tag] for tag in tags] == [direct[tag] for tag in tags]


def test_a_fault_that_stays_severe_ends_a_run_that_says_so(tmp_path: Path, script: Any) -> None:
    """Of those of the last validation, it names the one that the validation before had, too."""
    both = [found("one", "severe"), found("two", "severe")]
    script[0].update({4: [found("one", "severe")], 6: both[1:], 8: both})
    with pytest.raises(TrainingError, match=r"step 8: .*two consecutive validations \(two is so\); checkpoint saved"):
        train(settings(tmp_path, steps=12, stop_on_severe=True), tmp_path / "run")
    state = load_checkpoint(RunDirectory(tmp_path / "run"), lambda line: None)
    assert state is not None
    assert state.step == 8
    assert [line["step"] for line in RunDirectory(tmp_path / "run").validations()] == [2, 4, 6, 8]


def test_different_severe_faults_end_no_run(tmp_path: Path, script: Any) -> None:
    """Nor does one that was a warning the time before."""
    script[0].update({4: [found("one", "severe"), found("two")], 6: [found("two", "severe")], 8: [found("one")]})
    assert train(settings(tmp_path, stop_on_severe=True), tmp_path / "run")["best_step"]


@pytest.mark.parametrize(("warmup", "ends"), [(3, 6), (4, 8), (8, None)])
def test_what_is_severe_in_warm_up_ends_no_run(warmup: int, ends: int | None, tmp_path: Path, script: Any) -> None:
    script[0].update({step: [found("one", "severe")] for step in (2, 4, 6, 8)})
    run = settings(tmp_path, stop_on_severe=True, warmup_steps=warmup)
    if ends is None:
        assert train(run, tmp_path / "run")["best_step"]
        return
    with pytest.raises(TrainingError, match=f"step {ends}: .*two consecutive validations"):
        train(run, tmp_path / "run")


def test_severe_findings_end_no_run_that_does_not_say_so(tmp_path: Path, script: Any) -> None:
    script[0].update({step: [found("one", "severe")] for step in (2, 4, 6, 8)})
    assert train(settings(tmp_path), tmp_path / "run")["best_step"]


def test_warnings_end_no_run(tmp_path: Path, script: Any) -> None:
    script[0].update({step: [found("one")] for step in (2, 4, 6, 8)})
    assert train(settings(tmp_path, stop_on_severe=True), tmp_path / "run")["best_step"]


def test_a_single_sample_has_no_other_to_be_shuffled_with(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones((1, 4), np.float32))
    random = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    train(tiny(tmp_path, random, data={"validation": str(tmp_path / "one.npy")}), tmp_path / "run")
    last = RunDirectory(tmp_path / "run").validations()[-1]
    assert "validation/loss/reconstruction" in last
    assert not any("shuffled" in tag for tag in last)


def test_tokens_are_positions_of_all_training_samples(tmp_path: Path, script: Any) -> None:
    encoder = {"kind": "mlp", "width": 8, "num_tokens": 3}
    train(tiny(tmp_path, encoder=encoder), tmp_path / "run")
    assert script[1][-1].tokens == 48 * 3
