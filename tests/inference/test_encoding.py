"""Samples on their way to indices: read ahead, looked over meanwhile."""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from tests import IDENTITY, make_run, normal, save
from tests.conftest import TrainedRun
from vqtool import load
from vqtool.data import Samples, scan
from vqtool.errors import DataError
from vqtool.inference.encoding import encoding
from vqtool.inference.transcode import encode_file
from vqtool.models import chunks


def test_every_row_comes_once_and_in_order(trained: TrainedRun, tmp_path: Path) -> None:
    tokenizer = load(trained.folder)
    with encoding(tokenizer, tmp_path / "out.npy", None, None) as job:
        found = list(job.encoded(1))
        manifest = job.manifest()
    assert np.array_equal(np.concatenate([indices for _, indices in found]), tokenizer.encode(trained.array).numpy())
    lengths = [len(indices) for _, indices in found]
    assert [start for start, _ in found] == [sum(lengths[:number]) for number in range(len(found))]
    assert (manifest.shape, manifest.dtype) == (job.shape, job.dtype)


def test_the_next_rows_are_read_while_these_are_encoded(
    trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, asked = load(trained.folder), threading.Event()
    monkeypatch.setattr(chunks, "_POSITIONS", 64)
    read = Samples.read

    def reading(samples: Samples, start: int, stop: int) -> Tensor:
        if start:
            asked.set()
        return read(samples, start, stop)

    monkeypatch.setattr(Samples, "read", reading)
    with encoding(tokenizer, tmp_path / "out.npy", None, None) as job:
        encoded = job.encoded(1)
        assert next(encoded)[0] == 0
        assert asked.wait(timeout=60)
        encoded.close()


def test_what_is_not_finite_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    rows = normal(5000, 4)
    tokenizer = load(make_run(tmp_path, rows, IDENTITY))
    rows[4321, 2] = np.nan
    bad = save(tmp_path, rows, "bad")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"bad\.npy: row 4321 .*NaN"):
        encode_file(tokenizer, tmp_path / "tokens.npy", str(bad), batch_size=64)
    assert sorted(tmp_path.iterdir()) == before


def test_a_fault_that_is_found_early_ends_the_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = normal(5000, 4)
    tokenizer = load(make_run(tmp_path, rows, IDENTITY))
    rows[0, 0] = np.inf
    with encoding(tokenizer, tmp_path / "out.npy", str(save(tmp_path, rows, "bad")), None) as job:
        job.survey.exception()
        with pytest.raises(DataError, match=r"bad\.npy: row 0 .*infinit"):
            next(job.encoded(64))


def test_classes_are_looked_over_before_an_encoder_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 4, (40, 16))
    tokenizer = load(make_run(tmp_path, rows, {"kind": "conv1d", "width": 8, "downsamples": 1, "res_blocks": 0}))
    rows[7, 3] = 4
    out = tmp_path / "tokens.npy"
    with (
        pytest.raises(DataError, match=r"bad\.npy: row 7 .*class 4 .*0 to 3"),
        encoding(tokenizer, out, str(save(tmp_path, rows, "bad")), None),
    ):
        raise AssertionError("it was not refused")


def test_no_moments_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load(make_run(tmp_path, normal(50, 4), IDENTITY))
    monkeypatch.setattr(scan.Moments, "of", None)
    encode_file(tokenizer, tmp_path / "tokens.npy", str(save(tmp_path, normal(60, 4), "other")))
    assert len(np.load(tmp_path / "tokens.npy")) == 60


def test_data_that_change_meanwhile_are_refused(trained: TrainedRun, tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    shutil.copy(trained.data, path)
    with encoding(load(trained.folder), tmp_path / "tokens.npy", str(path), None) as job:
        with path.open("r+b") as file:  # not cut short: the pages are mapped
            file.seek(-4, os.SEEK_END)
            file.write(bytes(4))
        with pytest.raises(DataError, match=r"images\.npy: file changed while it was read"):
            job.manifest()


def test_running_out_of_memory_names_what_to_lower(trained: TrainedRun, tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="out of memory; lower --batch-size"),
        encoding(load(trained.folder), tmp_path / "tokens.npy", None, None),
    ):
        raise MemoryError


def test_an_output_that_would_be_data_from_then_on_is_refused(trained: TrainedRun, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    save(shards, trained.array, "items")
    with pytest.raises(DataError, match=r"tokens\.npy: .*would be read as data"):
        encode_file(load(trained.folder), tmp_path / "." / "shards" / "tokens.npy", str(shards))
    encode_file(load(trained.folder), tmp_path / "tokens.npy", str(shards))
    encode_file(load(trained.folder), shards / "tokens.npy", str(shards / "items.npy"))
