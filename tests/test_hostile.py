"""Malicious files are refused by name: nothing is executed, memory stays small, and nothing is written."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import normal
from tests.cli import mentions
from tests.conftest import Result, TrainedRun
from tests.hostile import CONFIGS, TENSOR_FILES, Trap, npy, npz

Command = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("little_memory")
GOOD = """
data: {kind: tensors, path: x.npy}
model: {encoder: {kind: identity}, quantizer: {kind: vector, codebook_size: 4}}
training: {device: cpu}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a valid config, two levels deep, so that writes to `../..` are detected."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    (inner / "c.yaml").write_text(GOOD)
    return inner


def _assert_refused(result: Result, name: str, text: str) -> None:
    assert result.code == 2, result.err
    assert name in result.err
    assert mentions(result.err, text)
    assert "Traceback" not in result.err
    assert len(result.err) < 20_000
    assert all(line.isprintable() for line in result.err.split("\n"))


@pytest.mark.parametrize("name", TENSOR_FILES, ids=[name[:40] for name in TENSOR_FILES])
def test_malicious_tensor_file_is_refused_by_name(name: str, folder: Path, tmp_path: Path, vqtool: Command) -> None:
    write, message = TENSOR_FILES[name]
    write(folder / name)
    before = list(tmp_path.rglob("*"))
    _assert_refused(vqtool("train", "--config", "c.yaml", "--set", f"data.path={name}", "--dry-run"), name, message)
    assert list(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../../up", "/tmp/vqtool-absolute", "C:\\up"])
def test_member_of_an_archive_is_not_used_as_a_path(name: str, folder: Path, tmp_path: Path, vqtool: Command) -> None:
    npz(folder / "x.npz", npy("(3, 4)", bytes(48)), f"{name}.npy")
    before = list(tmp_path.rglob("*"))
    result = vqtool("train", "--config", "c.yaml", "--set", "data.path=x.npz", "--key", name, "--dry-run")
    assert result.code == 0, result.err
    assert list(tmp_path.rglob("*")) == before
    assert not Path(f"{name}.npy").exists()


@pytest.mark.parametrize("name", ["trap.pt", "bomb.npz", "expanded-view.pt", "loop.npy"])
def test_encode_refuses_malicious_data(name: str, folder: Path, trained: TrainedRun, vqtool: Command) -> None:
    write, message = TENSOR_FILES[name]
    write(folder / name)
    _assert_refused(vqtool("encode", trained.folder, folder / name, "--out", "tokens.npy"), name, message)
    assert not (folder / "tokens.npy").exists()
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_malicious_config_is_refused_by_name(name: str, folder: Path, vqtool: Command) -> None:
    content, message = CONFIGS[name]
    (folder / "c.yaml").write_bytes(content)
    _assert_refused(vqtool("train", "--config", "c.yaml", "--dry-run"), "c.yaml", message)
    assert [path.name for path in folder.iterdir()] == ["c.yaml"]


def test_huge_or_endless_config_is_refused_after_1_mib(folder: Path, vqtool: Command) -> None:
    with (folder / "sparse.yaml").open("wb") as file:
        file.truncate(2 << 30)
    for path in (folder / "sparse.yaml", Path("/dev/zero")):
        _assert_refused(vqtool("train", "--config", path, "--dry-run"), str(path), "1,048,576 bytes")


def test_symlink_to_itself_is_refused_as_config_and_run_directory(folder: Path, vqtool: Command) -> None:
    (folder / "loop").symlink_to(folder / "loop")
    np.save(folder / "x.npy", normal(20, 3))
    _assert_refused(vqtool("train", "--config", "loop", "--dry-run"), "loop", "symbolic link")
    _assert_refused(vqtool("train", "--config", "c.yaml", "--run-dir", "loop"), "loop", "created")
    _assert_refused(vqtool("encode", "loop", "x.npy", "--out", "t.npy"), "loop", "not a run")
    _assert_refused(vqtool("inspect", "loop"), "loop", "does not exist")


def test_glob_does_not_follow_symlink_cycles(folder: Path, vqtool: Command) -> None:
    for name in ("a", "b"):
        (folder / name).symlink_to(folder)
    np.save(folder / "x.npy", normal(20, 3))
    assert vqtool("train", "--config", "c.yaml", "--set", "data.path='**/*.npy'", "--dry-run").code == 0


@pytest.mark.parametrize("name", ["\x1b[31mred.npy", "two\nlines.npy", "\u202egnp.npy", "bell\x07.npy"])
def test_control_characters_of_a_file_name_are_escaped(name: str, folder: Path, vqtool: Command) -> None:
    (folder / "shards").mkdir()
    (folder / "shards" / name).write_bytes(npy("(3, 4)"))
    result = vqtool("train", "--config", "c.yaml", "--set", "data.path=shards", "--dry-run")
    _assert_refused(result, name.encode("unicode_escape").decode(), "damaged")
    assert result.err.count("\n") == 1


def test_control_characters_of_an_array_name_are_escaped(folder: Path, vqtool: Command) -> None:
    torch.save({"\x1b[2Jx\n": torch.ones(3, 2), "y": torch.ones(3, 2)}, folder / "a.pt")
    result = vqtool("train", "--config", "c.yaml", "--set", "data.path=a.pt", "--dry-run")
    _assert_refused(result, "a.pt", r"  \x1b[2Jx\n  float32 (3, 2)")


def test_control_characters_of_a_run_name_are_escaped(folder: Path, trained: TrainedRun, vqtool: Command) -> None:
    (folder / "\x1b[2Jrun").symlink_to(trained.folder)
    result = vqtool("inspect", folder)
    assert result.code == 0
    assert "\x1b" not in result.out
    assert r"\x1b[2Jrun" in result.out.replace("\n", "")  # the table wraps long names


def _trap_checkpoints(run: Path) -> None:
    for checkpoint in (run / "checkpoints").glob("*.pt"):
        torch.save(Trap(run.parent / "sprung"), checkpoint)


def _replace(name: str, content: bytes | Path) -> Callable[[Path], None]:
    def replace(run: Path) -> None:
        (run / name).unlink()
        (run / name).symlink_to(content) if isinstance(content, Path) else (run / name).write_bytes(content)

    return replace


# Function that damages a run directory, name of the damaged file, and text of the error message.
RUNS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "checkpoint": (_trap_checkpoints, "step-000000012.pt", "damaged"),
    "config": (
        _replace("config.yaml", b"data: !!python/object/apply:os.mkdir [sprung]\n"),
        "config.yaml",
        "is not supported",
    ),
    "endless config": (_replace("config.yaml", Path("/dev/zero")), "config.yaml", "link"),
    "config loop": (_replace("config.yaml", Path("config.yaml")), "run", "link"),
    "summary": (_replace("summary.json", b"\x80\x04]"), "summary.json", "damaged"),
}


@pytest.mark.parametrize("name", RUNS)
def test_malicious_run_directory_is_refused_by_name(
    name: str, folder: Path, trained: TrainedRun, vqtool: Command
) -> None:
    damage, file, message = RUNS[name]
    shutil.copytree(trained.folder, folder / "run")
    damage(folder / "run")
    command = ["train", "--config", trained.config, "--run-dir", "run", "--resume", "--set", "training.steps=14"]
    _assert_refused(vqtool(*command), file, message)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize(
    "content", [struct.pack("<Q", 1 << 50) + b"{}", b"\x80\x04]", struct.pack("<Q", 9) + b'{"a":{{{{']
)
def test_malicious_model_is_refused_by_name(content: bytes, folder: Path, trained: TrainedRun, vqtool: Command) -> None:
    shutil.copytree(trained.folder, folder / "run")
    (folder / "run" / "model.safetensors").write_bytes(content)
    for command in (["encode", "run", "--out", "t.npy"], ["inspect", "run"], ["eval", "run"]):
        _assert_refused(vqtool(*command), "model.safetensors", "damaged")


@pytest.mark.parametrize("content", [b'{"a":' * 100_000, b'{"shape": [1]}', b"\x80\x04]", b"[1]", b'{"\\u001b[2J": 1}'])
def test_malicious_manifest_is_refused_by_name(content: bytes, folder: Path, vqtool: Command) -> None:
    np.save(folder / "t.npy", np.zeros((3, 1), dtype=np.uint8))
    (folder / "t.json").write_bytes(content)
    message = "format_version: missing" if content.startswith((b'{"shape', b'{"\\u')) else "damaged: "
    _assert_refused(vqtool("inspect", "t.npy"), "t.json", message)
