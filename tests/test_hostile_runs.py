"""Malicious run directories: commands that read a damaged or endless file exit with code 2 and name the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import Result, TrainedRun
from tests.training import update_checkpoint_marker

Command = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("little_memory")


@pytest.fixture
def run(tmp_path: Path, trained: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.folder, tmp_path / "run")
    return tmp_path / "run"


def assert_refused(result: Result, name: str) -> None:
    assert result.code == 2, result.err
    assert name in result.err


def resume(vqtool: Command, trained: TrainedRun, run: Path) -> Result:
    return vqtool("train", "--config", trained.config, "--run-dir", run, "--resume", "--set", "training.steps=14")


def link_to_endless_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("command", [["inspect"], ["encode", "--out", "t.npy"], ["eval"]])
def test_model_that_is_an_endless_device_is_refused(command: list[str], run: Path, vqtool: Command) -> None:
    link_to_endless_device(run / "model.safetensors")
    assert_refused(vqtool(command[0], run, *command[1:]), "model.safetensors")


@pytest.mark.parametrize("content", [None, b'{"a":' * 200_000], ids=["endless", "deep"])
def test_endless_or_deeply_nested_summary_is_refused(
    content: bytes | None, run: Path, trained: TrainedRun, vqtool: Command
) -> None:
    if content is None:
        link_to_endless_device(run / "summary.json")
    else:
        (run / "summary.json").write_bytes(content)
    assert_refused(resume(vqtool, trained, run), "summary.json")


TENSORS: dict[str, torch.Tensor] = {
    "validation.counts.x": torch.ones(3),
    "validation.counts.0": torch.ones(2, 2, dtype=torch.int64),
    "validation.distinct": torch.ones(3),
    "validation.distinct ": torch.tensor(1),  # the same name with a scalar (the space is stripped)
}


@pytest.mark.parametrize("name", TENSORS)
def test_invalid_statistics_beside_the_weights_are_refused(name: str, run: Path, vqtool: Command) -> None:
    tensors = load_file(run / "model.safetensors")
    tensors[name.strip()] = TENSORS[name]
    save_file(tensors, run / "model.safetensors")
    assert_refused(vqtool("inspect", run), "model.safetensors")


def test_manifest_that_is_an_endless_device_is_refused(run: Path, vqtool: Command) -> None:
    np.save("t.npy", np.zeros((3, 1), dtype=np.uint8))
    Path("t.json").symlink_to("/dev/zero")
    assert_refused(vqtool("inspect", "t.npy"), "t.json")


def test_manifest_with_a_codebook_too_large_for_its_dtype_is_refused(run: Path, vqtool: Command) -> None:
    assert vqtool("encode", run, "--out", "t.npy").code == 0
    manifest = json.loads(Path("t.json").read_text())
    Path("t.json").write_text(json.dumps({**manifest, "codebook_sizes": [1 << 28]}))
    assert_refused(vqtool("inspect", "t.npy"), "t.json")


def test_index_file_that_links_to_itself_is_refused(run: Path, vqtool: Command) -> None:
    Path("t.json").write_text("{}")
    Path("t.npy").symlink_to("t.npy")
    assert_refused(vqtool("decode", run, "t.npy", "--out", "d.npy"), "t.npy")


FIELDS: list[dict[str, Any]] = [
    *({"step": "x"}, {"step": 2**70}, {"step": -5}, {"seconds": "x"}, {"model": {}}),
    {"last_validation": {"step": None, "metrics": 5}},
]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_checkpoint_with_invalid_fields_is_refused(
    fields: dict[str, Any], run: Path, trained: TrainedRun, vqtool: Command
) -> None:
    for path in (run / "checkpoints").glob("*.pt"):
        torch.save({**torch.load(path, weights_only=True), **fields}, path)
        update_checkpoint_marker(path)
    assert_refused(resume(vqtool, trained, run), ".pt")


def set_later_version(run: Path, name: str) -> None:
    """Set format_version to 7 in a file of a run, or in the manifest of its tokens."""
    path = run / name
    match path.suffix:
        case ".safetensors":
            with safe_open(path, "pt") as file:
                metadata = {**json.loads(file.metadata()["vqtool"]), "format_version": 7}
            save_file(load_file(path), path, metadata={"vqtool": json.dumps(metadata)})
        case ".pt":
            torch.save({**torch.load(path, weights_only=True), "format_version": 7}, path)
            update_checkpoint_marker(path)
        case ".json":
            path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 7}))
        case ".yaml":
            path.write_text(path.read_text().replace("format_version: 1", "format_version: 7"))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("config.yaml", ["encode", "run", "--out", "t.npy"]),
        ("model.safetensors", ["encode", "run", "--out", "t.npy"]),
        ("tokens.json", ["decode", "run", "run/tokens.npy", "--out", "d.npy"]),
        ("checkpoints/step-000000012.pt", ["train", "--resume"]),
        ("checkpoints/step-000000012.json", ["train", "--resume"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_later_format_version_is_refused(
    name: str, command: list[str], run: Path, trained: TrainedRun, vqtool: Command
) -> None:
    assert vqtool("encode", run, "--out", run / "tokens.npy").code == 0
    for path in (run / "checkpoints").glob("step-000000006*"):
        path.unlink()
    set_later_version(run, name)
    result = resume(vqtool, trained, run) if command[0] == "train" else vqtool(*command)
    assert_refused(result, name)
    for part in ("format_version", "7", "update vqtool"):
        assert part in result.err


LONG_NAME = "x" * 300


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--config", "c.yaml", "--run-dir", LONG_NAME, "--dry-run"],
        ["train", "--config", "c.yaml", "--run-dir", LONG_NAME],
        ["inspect", LONG_NAME],
        ["encode", LONG_NAME, "--out", "t.npy"],
        ["encode", "run", "--out", f"{LONG_NAME}.npy"],
        ["decode", "run", f"{LONG_NAME}.npy", "--out", "d.npy"],
        ["init", "images", "--out", f"{LONG_NAME}.yaml"],
    ],
    ids=lambda command: command[0],
)
def test_file_name_that_is_too_long_is_refused(
    command: list[str], run: Path, trained: TrainedRun, vqtool: Command
) -> None:
    shutil.copy(trained.config, "c.yaml")
    assert_refused(vqtool(*command), LONG_NAME)


@pytest.mark.parametrize("command", [["--dry-run"], []])
def test_batch_that_does_not_fit_memory_is_refused(
    command: list[str], trained: TrainedRun, tmp_path: Path, vqtool: Command
) -> None:
    size = ["--set", "training.batch_size=300000", "--set", "model.encoder.width=256"]
    result = vqtool("train", "--config", trained.config, "--run-dir", tmp_path / "new", *size, *command)
    assert_refused(result, "training.batch_size")
