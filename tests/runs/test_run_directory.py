"""The run directory: files, locking, metrics and summary."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import mentions
from tests.conftest import TrainedRun
from vqtool.config import RunSettings
from vqtool.errors import CheckpointError, ConfigError
from vqtool.runs.run_directory import RunDirectory

SETTINGS = RunSettings.model_validate(
    {
        "name": "r",
        "data": {"kind": "tensors", "path": "/x.npy"},
        "model": {"encoder": {"kind": "mlp"}, "quantizer": {"kind": "vector"}},
    }
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / "r")
    run.create(SETTINGS)
    return run


def test_run_exists_once_it_is_created(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "b")
    assert not run.exists
    run.create(SETTINGS)
    assert run.exists
    assert run.settings() == SETTINGS
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "config.yaml"]


def test_folder_can_be_a_string(run: RunDirectory) -> None:
    assert RunDirectory(str(run.folder)).settings() == SETTINGS


def test_directory_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a run: .*config\.yaml"):
        RunDirectory(tmp_path).settings()


def test_directory_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/run: "):
        RunDirectory(tmp_path / "file" / "run").create(SETTINGS)


def test_invalid_config_is_named(run: RunDirectory) -> None:
    run.config.write_text("data: 5\n")
    with pytest.raises(ConfigError, match=r"config\.yaml:1: data: "):
        run.settings()


def test_clear_removes_the_run_and_keeps_other_files(trained: TrainedRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    (folder / "notes.txt").write_text("notes")
    (folder / "plots").mkdir()
    RunDirectory(folder).clear()
    # The config and the empty checkpoints directory remain, so the directory still counts as a run.
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "config.yaml", "notes.txt", "plots"]
    assert not list((folder / "checkpoints").iterdir())
    assert RunDirectory(folder).exists
    RunDirectory(tmp_path / "nothing").clear()
    assert not (tmp_path / "nothing").exists()


def test_directory_is_locked_by_one_process(run: RunDirectory) -> None:
    lock = (
        "from vqtool.runs.run_directory import RunDirectory\n"
        f"with RunDirectory({str(run.folder)!r}).locked(): print('locked')"
    )
    with run.locked():
        second = subprocess.run([sys.executable, "-c", lock], capture_output=True, text=True)
        assert second.returncode
        assert mentions(second.stderr, f"CheckpointError: {run.folder}: ... another process")
    third = subprocess.run([sys.executable, "-c", lock], capture_output=True, text=True)
    assert third.stdout == "locked\n"


def test_locking_removes_temporary_files_of_the_run_only(run: RunDirectory) -> None:
    temp_files = [
        ".config.yaml.part",
        ".model.safetensors.part",
        ".metrics.jsonl.part",
        ".events.out.tfevents.1.host.part",
    ]
    for name in [*temp_files, "checkpoints/.step-000000003.pt.part", ".notes.part", "checkpoints/notes.part"]:
        (run.folder / name).write_text("half")
    with run.locked():
        pass
    names = sorted(str(path.relative_to(run.folder)) for path in run.folder.rglob("*.part"))
    assert names == [".notes.part", "checkpoints/notes.part"]


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "model.safetensors", "config.yaml"])
def test_links_and_devices_in_place_of_files_are_refused(run: RunDirectory, tmp_path: Path, name: str) -> None:
    path = run.folder / name
    if name == "checkpoints":
        path.rmdir()
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{name}: .*link"), run.locked():
        pytest.fail("locked")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=f"{name}: .*link"), run.locked():
        pytest.fail("locked")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"step": Infinity}', '{"step": "x"}', "[]", "", '{"step": 1'])
def test_damaged_lines_of_the_metrics_are_skipped(run: RunDirectory, line: str) -> None:
    good = '{"step": 3, "validation/loss/total": 1.5, "x": "y", "findings": []}'
    run.metrics.write_text(f"{line} validation/loss/total\n{good}\n")
    assert run.read_validations() == [{"step": 3, "validation/loss/total": 1.5, "findings": []}]


def test_lines_that_are_too_long_are_skipped(run: RunDirectory) -> None:
    run.max_line_bytes = 40
    first, last = '{"step": 1, "loss/total": 1.5}', '{"step": 2, "loss/total": 0.5}'
    for long in ("x" * 39, "x" * 40, "x" * 79, "x" * 80, '{"step": 9}' + " " * 200, " " * 40 + '{"step": 9}'):
        run.metrics.write_text(f"{first}\n{long}\n{last}\n")
        assert [line["step"] for line in run.read_metrics()] == [1, 2]
        assert max(len(line) for line in run.metrics_lines()) <= 40
        run.metrics.write_text(f"{first}\n{long}")
        assert [line["step"] for line in run.read_metrics()] == [1]
    run.metrics.write_text(f"{first}\n{last}")
    assert [line["step"] for line in run.read_metrics()] == [1, 2]


@pytest.mark.parametrize("missing_key", ["name", "severity", "message"])
@pytest.mark.parametrize("replacement", [None, 3])
def test_logged_findings_without_name_severity_or_message_are_dropped(
    missing_key: str, replacement: int | None, run: RunDirectory
) -> None:
    finding = {"name": "collapse", "severity": "severe", "message": "few codes"}
    invalid: dict[str, object] = {**finding, missing_key: replacement}
    if replacement is None:
        del invalid[missing_key]
    line = {"step": 3, "validation/loss/total": 1.5}
    lines = [json.dumps(line | {"findings": [logged]}) for logged in (invalid, finding)]
    run.metrics.write_text("".join(f"{text}\n" for text in lines))
    assert run.read_validations() == [line, line | {"findings": [finding]}]


def test_new_directory_that_stays_empty_is_removed(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "new").locked():
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()


def test_summary_is_read_unchanged(run: RunDirectory) -> None:
    assert run.read_summary() is None
    summary = {"steps": 3, "seconds": 1.5, "best_step": 2, "best": {"a": 0.5}, "final": {"a": 0.75}}
    run.write_summary(summary)
    assert run.read_summary() == summary


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"5", b"[]", b'{"steps": 30}'])
def test_damaged_summary_is_refused(content: bytes, run: RunDirectory) -> None:
    run.summary.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"summary\.json: damaged"):
        run.read_summary()


def test_missing_key_of_the_summary_is_named(run: RunDirectory) -> None:
    run.write_summary({"steps": 3, "seconds": 1.5, "best_step": 2, "final": {}})
    with pytest.raises(CheckpointError, match=r"summary\.json: damaged: .*\bbest;"):
        run.read_summary()


# Format version


def test_config_starts_with_its_format_version(run: RunDirectory) -> None:
    assert run.config.read_text().startswith("format_version: 1\n")


def test_config_without_a_format_version_has_version_1(run: RunDirectory) -> None:
    run.config.write_text(run.config.read_text().removeprefix("format_version: 1\n"))
    assert run.settings() == SETTINGS


@pytest.mark.parametrize("version", ["2", "0", "'1'", "1.0", "true", "null"])
def test_unknown_format_version_of_the_config_is_refused(run: RunDirectory, version: str) -> None:
    run.config.write_text(run.config.read_text().replace("format_version: 1", f"format_version: {version}"))
    with pytest.raises(ConfigError, match=r"config\.yaml:1: format_version: .*1; update vqtool"):
        run.settings()
