"""A full disk produces a one-line error; existing files are not touched."""

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import files
from tests.conftest import TrainedRun
from tests.training import tiny_settings
from vqtool import load
from vqtool.errors import CheckpointError, DataError
from vqtool.inference.decode import decode_file
from vqtool.inference.encode import encode_file
from vqtool.runs.checkpoint import load_checkpoint
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Limit files to `size` bytes: longer writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_run_on_a_full_disk_ends_with_an_error_and_can_be_resumed(tmp_path: Path) -> None:
    short = tiny_settings(tmp_path, steps=2, checkpoint_every=1, validate_every=1, schedule="constant")
    longer = tiny_settings(tmp_path, steps=4, checkpoint_every=1, validate_every=1, schedule="constant")
    train(short, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "uninterrupted")
    train(longer, tmp_path / "uninterrupted", resume=True)
    largest = max(path.stat().st_size for path in (tmp_path / "uninterrupted").rglob("*") if path.is_file())
    for twelfth in range(12):
        folder = tmp_path / f"cut-{twelfth}"
        shutil.copytree(tmp_path / "run", folder)
        with (
            file_size_limit(largest * twelfth // 12),
            pytest.raises(DataError, match="File too large"),
        ):
            train(longer, folder, resume=True)
        assert load_checkpoint(RunDirectory(folder), pytest.fail) is not None
        assert read_model(RunDirectory(folder).model)[0].step
        assert not list(folder.rglob("*.part"))
        train(longer, folder, resume=True)
        assert RunDirectory(folder).model.read_bytes() == RunDirectory(tmp_path / "uninterrupted").model.read_bytes()


def test_encode_and_decode_on_a_full_disk_keep_existing_files(trained: TrainedRun, tmp_path: Path) -> None:
    tokenizer, out, back = load(trained.folder), tmp_path / "tokens.npy", tmp_path / "back.npy"
    encode_file(tokenizer, out)
    decode_file(tokenizer, out, back)
    before = (*files(out), back.read_bytes())
    for size in (0, 100, 500):
        with file_size_limit(size):
            with pytest.raises(DataError, match=r"tokens\.\w+: .*File too large"):
                encode_file(tokenizer, out, overwrite=True)
            with pytest.raises(DataError, match=r"back\.npy: .*File too large"):
                decode_file(tokenizer, out, back, overwrite=True)
        assert (*files(out), back.read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.npy", "tokens.json", "tokens.npy"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root ignores permissions")
def test_read_only_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(CheckpointError, match=r"locked/run: .*permission denied"):
        train(tiny_settings(tmp_path, steps=1), tmp_path / "locked" / "run")


def test_directory_that_cannot_be_created_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def mkdir_without_permission(self: Path, *args: int, **kwargs: bool) -> None:
        if self.name == "run":
            raise PermissionError(13, "Permission denied")
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir_without_permission)
    with pytest.raises(CheckpointError, match=r"run: .*permission denied"):
        train(tiny_settings(tmp_path, steps=1), tmp_path / "run")
