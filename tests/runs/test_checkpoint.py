"""Checkpoints: saved and loaded, deleted, damaged, and of other format versions."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli import mentions
from tests.training import assert_equal_states, tiny_settings, update_checkpoint_marker
from vqtool.errors import CheckpointError, DataError
from vqtool.runs import checkpoint as checkpoint_module
from vqtool.runs.checkpoint import TrainingState, ValidationResult, load_checkpoint, save_checkpoint
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    return run


def state_at(step: int) -> TrainingState:
    return TrainingState(
        step=step,
        model={"weight": torch.rand(3, 4), "counts": torch.arange(5)},
        optimizer={"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        last_validation=ValidationResult(None, {}),
        pending_metrics={"loss/total": 0.5},
        init_was_early=False,
        seconds=1.5,
        data_sha256="0" * 64,
        last_codes=[torch.rand(5, 2), None],
    )


def checkpoint_steps(run: RunDirectory) -> list[int]:
    """Return the steps of all checkpoints; every .pt file must have its marker."""
    names = sorted(path.name for path in run.checkpoints.iterdir())
    steps = [int(name[5:14]) for name in names if name.endswith(".pt")]
    assert names == sorted(f"step-{step:09d}.{kind}" for step in steps for kind in ("pt", "json"))
    return steps


def load(run: RunDirectory) -> TrainingState:
    state = load_checkpoint(run)
    assert state is not None
    return state


def test_saved_state_is_loaded_unchanged(run: RunDirectory) -> None:
    state = state_at(7)
    save_checkpoint(run, state, keep=1)
    assert_equal_states(vars(load(run)), vars(state))


def test_newest_checkpoint_is_loaded(run: RunDirectory) -> None:
    for step in (9, 10, 100, 10**9 + 1):
        save_checkpoint(run, state_at(step), keep=5)
    assert load(run).step == 10**9 + 1


def test_without_checkpoints_none_is_loaded(run: RunDirectory) -> None:
    assert load_checkpoint(run) is None
    (run.checkpoints / ".step-000000003.pt.part").write_bytes(b"half")
    assert load_checkpoint(run) is None


def test_checkpoint_without_marker_is_skipped_with_a_message(run: RunDirectory) -> None:
    (run.checkpoints / "step-000000003.pt").write_bytes(b"content")
    lines: list[str] = []
    assert load_checkpoint(run, lines.append) is None
    assert mentions(lines[0], "step-000000003.pt: incomplete ... step-000000003.json")


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_last_checkpoints_are_kept(run: RunDirectory, keep: int) -> None:
    for step in (5, 50, 500, 5000):
        save_checkpoint(run, state_at(step), keep)
    assert checkpoint_steps(run) == [5, 50, 500, 5000][-keep:]


def test_checkpoint_of_the_same_step_is_replaced_atomically(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(run, state_at(5), keep=1)
    first = load(run)

    def raise_interrupt(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write_json", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(run, state_at(5), keep=1)
    assert_equal_states(vars(load(run)), vars(first))
    for _ in range(3):
        again = state_at(5)
        save_checkpoint(run, again, keep=1)
        assert_equal_states(vars(load(run)), vars(again))
        assert len(list(run.checkpoints.iterdir())) == 2


def test_checkpoints_of_later_steps_are_deleted(run: RunDirectory) -> None:
    for step in (5, 50, 500):
        save_checkpoint(run, state_at(step), keep=3)
    save_checkpoint(run, state_at(51), keep=3)
    assert checkpoint_steps(run) == [5, 50, 51]


def test_other_files_are_kept(run: RunDirectory) -> None:
    for name in ("step-final.pt", "epoch-000000001.pt", "step-000000001.txt"):
        (run.checkpoints / name).write_text("notes")
    for step in (5, 50):
        save_checkpoint(run, state_at(step), keep=1)
    assert sorted(path.name for path in run.checkpoints.iterdir() if path.read_bytes() == b"notes") == [
        "epoch-000000001.pt",
        "step-000000001.txt",
        "step-final.pt",
    ]


def test_training_keeps_the_configured_number_of_checkpoints(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path, checkpoint_every=2, keep_checkpoints=3), tmp_path / "run")
    assert checkpoint_steps(RunDirectory(tmp_path / "run")) == [4, 6, 8]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_failed_write_keeps_existing_checkpoints(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    save_checkpoint(run, state_at(1), keep=1)

    def fail(content: object, file: object) -> None:
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises((KeyboardInterrupt, DataError)):
        save_checkpoint(run, state_at(2), keep=1)
    assert checkpoint_steps(run) == [1]


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def randomize(content: bytes) -> bytes:
    return random.Random(0).randbytes(len(content))


def flip_a_bit(content: bytes) -> bytes:
    i = len(content) // 3
    return content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :]


DAMAGES = [
    truncate,
    randomize,
    flip_a_bit,
    lambda content: b"",
    lambda content: b"PK\x03\x04",
    lambda content: b'{"format_version": 1}',
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["pt", "json"])
def test_damaged_checkpoint_is_skipped_with_a_message(
    run: RunDirectory, damage: Callable[[bytes], bytes], kind: str
) -> None:
    for step in (3, 6):
        save_checkpoint(run, state_at(step), keep=2)
    path = run.checkpoints / f"step-000000006.{kind}"
    path.write_bytes(damage(path.read_bytes()))
    lines: list[str] = []
    state = load_checkpoint(run, lines.append)
    assert state is not None
    assert state.step == 3
    assert len(lines) == 1
    assert any(f"step-000000006.{suffix}: damaged" in lines[0] for suffix in {"pt", kind})
    assert lines[0].endswith("skipped")


@pytest.mark.parametrize("kind", ["pt", "json"])
def test_checkpoint_with_a_missing_file_is_skipped_with_a_message(run: RunDirectory, kind: str) -> None:
    for step in (3, 6):
        save_checkpoint(run, state_at(step), keep=2)
    (run.checkpoints / f"step-000000006.{kind}").unlink()
    lines: list[str] = []
    state = load_checkpoint(run, lines.append)
    assert state is not None
    assert (state.step, len(lines)) == (3, 1)
    assert "step-000000006" in lines[0]


def test_resume_is_refused_if_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    train(settings, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    run.summary.unlink()
    for path in run.checkpoints.glob("*.pt"):
        path.write_bytes(flip_a_bit(path.read_bytes()))
    model = run.model.read_bytes()
    with pytest.raises(CheckpointError, match=r"checkpoints: .*--overwrite"):
        train(settings, tmp_path / "run", resume=True)
    assert run.model.read_bytes() == model


class _Code:
    """An object that fails the test when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (pytest.fail, ("code in a checkpoint ran",))


@pytest.mark.parametrize(
    "content", [[1, 2], {"format_version": 1, "model": {}}, torch.zeros(3), {"format_version": 1, "step": _Code()}]
)
def test_foreign_content_is_refused_and_executes_no_code(run: RunDirectory, content: object) -> None:
    save_checkpoint(run, state_at(3), keep=1)
    path = run.checkpoints / "step-000000003.pt"
    torch.save(content, path)
    update_checkpoint_marker(path)
    lines: list[str] = []
    with pytest.raises(CheckpointError, match="checkpoints: "):
        load_checkpoint(run, lines.append)
    assert "step-000000003.pt: damaged" in lines[0]


def read_pair(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """Return the content of the only checkpoint and of its marker, by suffix."""
    path = run.checkpoints / "step-000000003.pt"
    return {"pt": torch.load(path, weights_only=True), "json": json.loads(path.with_suffix(".json").read_text())}


def write_pair(run: RunDirectory, pair: dict[str, dict[str, Any]]) -> None:
    path = run.checkpoints / "step-000000003.pt"
    torch.save(pair["pt"], path)
    path.with_suffix(".json").write_text(json.dumps(pair["json"]))
    update_checkpoint_marker(path)


def test_checkpoint_and_marker_have_a_format_version(run: RunDirectory) -> None:
    save_checkpoint(run, state_at(3), keep=1)
    assert [content["format_version"] for content in read_pair(run).values()] == [1, 1]


@pytest.mark.parametrize("kind", ["pt", "json"])
@pytest.mark.parametrize("version", [2, 0, "1"])
def test_unknown_format_version_is_refused(run: RunDirectory, kind: str, version: Any) -> None:
    save_checkpoint(run, state_at(3), keep=1)
    pair = read_pair(run)
    pair[kind]["format_version"] = version
    write_pair(run, pair)
    lines: list[str] = []
    with pytest.raises(CheckpointError, match="checkpoints: "):
        load_checkpoint(run, lines.append)
    expected = f"step-000000003.{kind}: format_version: {json.dumps(version)} ... 1; update vqtool ... --overwrite"
    assert mentions(lines[0], expected)


@pytest.mark.parametrize("kind", ["pt", "json"])
def test_missing_format_version_is_refused(run: RunDirectory, kind: str) -> None:
    save_checkpoint(run, state_at(3), keep=1)
    pair = read_pair(run)
    del pair[kind]["format_version"]
    write_pair(run, pair)
    lines: list[str] = []
    with pytest.raises(CheckpointError, match="checkpoints: "):
        load_checkpoint(run, lines.append)
    assert f"step-000000003.{kind}: format_version: missing" in lines[0]
    assert "--overwrite" in lines[0]


@pytest.mark.parametrize("kind", ["pt", "json"])
def test_resume_from_the_checkpoint_before_a_damaged_one_gives_the_same_model(tmp_path: Path, kind: str) -> None:
    settings = tiny_settings(tmp_path)
    train(settings, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    model, last = run.model.read_bytes(), run.checkpoints / f"step-000000008.{kind}"
    before = load_checkpoint(run)
    last.write_bytes(flip_a_bit(last.read_bytes()))
    run.summary.unlink()
    lines: list[str] = []
    train(settings, tmp_path / "run", resume=True, log=lines.append)
    assert any("step-000000008" in line and "skipped" in line for line in lines)
    assert run.model.read_bytes() == model
    after = load_checkpoint(run)
    assert before is not None
    assert after is not None
    assert_equal_states((after.model, after.optimizer), (before.model, before.optimizer))
