"""Where the disk gives no more room, one line says so, and what was there is whole."""

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
from tests.training import tiny
from vqtool import load
from vqtool.errors import CheckpointError, DataError
from vqtool.inference.transcode import decode_file, encode_file
from vqtool.runs.checkpoint import load_checkpoint
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train


@contextmanager
def no_larger_than(size: int) -> Iterator[None]:
    """Within, no file can grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_run_cut_off_anywhere_says_so_and_goes_on_later(tmp_path: Path) -> None:
    short = tiny(tmp_path, steps=2, checkpoint_every=1, validate_every=1, schedule="constant")
    longer = tiny(tmp_path, steps=4, checkpoint_every=1, validate_every=1, schedule="constant")
    train(short, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "straight")
    train(longer, tmp_path / "straight", resume=True)
    largest = max(path.stat().st_size for path in (tmp_path / "straight").rglob("*") if path.is_file())
    for part in range(12):
        folder = tmp_path / f"cut-{part}"
        shutil.copytree(tmp_path / "run", folder)
        with no_larger_than(largest * part // 12), pytest.raises(DataError, match=r"cannot be written: File too large"):
            train(longer, folder, resume=True)
        assert load_checkpoint(RunDirectory(folder), pytest.fail) is not None
        assert read_model(RunDirectory(folder).model)[0].step
        assert not list(folder.rglob("*.part"))
        train(longer, folder, resume=True)
        assert RunDirectory(folder).model.read_bytes() == RunDirectory(tmp_path / "straight").model.read_bytes()


def test_encode_and_decode_leave_what_was_there(trained: TrainedRun, tmp_path: Path) -> None:
    tokenizer, out, back = load(trained.folder), tmp_path / "tokens.npy", tmp_path / "back.npy"
    encode_file(tokenizer, out)
    decode_file(tokenizer, out, back)
    before = (*files(out), back.read_bytes())
    for size in (0, 100, 500):
        with no_larger_than(size):
            with pytest.raises(DataError, match=r"tokens\.\w+: cannot be written: File too large"):
                encode_file(tokenizer, out, overwrite=True)
            with pytest.raises(DataError, match=r"back\.npy: cannot be written: File too large"):
                decode_file(tokenizer, out, back, overwrite=True)
        assert (*files(out), back.read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.npy", "tokens.json", "tokens.npy"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(CheckpointError, match=r"locked/run: cannot be created: permission denied"):
        train(tiny(tmp_path, steps=1), tmp_path / "locked" / "run")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Path.mkdir

    def refused(self: Path, *args: int, **kwargs: bool) -> None:
        if self.name == "run":
            raise PermissionError(13, "Permission denied")
        made(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(CheckpointError, match=r"run: cannot be created: permission denied"):
        train(tiny(tmp_path, steps=1), tmp_path / "run")
