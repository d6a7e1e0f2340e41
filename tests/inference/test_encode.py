"""Encoding of files: batches in threads, the scan in another thread, outputs and errors."""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from tests import IDENTITY, files, make_run, normal, save
from tests.conftest import TrainedRun
from vqtool import load
from vqtool.config import RunSettings
from vqtool.data import Samples, scan
from vqtool.errors import DataError
from vqtool.inference.decode import decode_file
from vqtool.inference.encode import encode_file, iter_indices, open_encode_job
from vqtool.training import train


def test_batches_cover_all_rows_in_order(trained: TrainedRun, tmp_path: Path) -> None:
    tokenizer = load(trained.folder)
    with open_encode_job(tokenizer, tmp_path / "out.npy", None, None) as job:
        batches = list(iter_indices(tokenizer, job.samples, job.rows, 1, "encode"))
        manifest = job.manifest()
    assert np.array_equal(np.concatenate([indices for _, indices in batches]), tokenizer.encode(trained.array).numpy())
    lengths = [len(indices) for _, indices in batches]
    assert [start for start, _ in batches] == [sum(lengths[:number]) for number in range(len(batches))]
    assert (manifest.shape, manifest.dtype) == (job.shape, job.dtype)


def test_next_batches_are_read_before_the_first_one_is_consumed(
    trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, second_batch_read = load(trained.folder), threading.Event()
    rows = save(tmp_path, np.resize(trained.array, (600, 1, 8, 8)))  # a chunk has 256 rows
    read = Samples.read

    def recording_read(samples: Samples, start: int, stop: int) -> Tensor:
        if start:
            second_batch_read.set()
        return read(samples, start, stop)

    monkeypatch.setattr(Samples, "read", recording_read)
    with open_encode_job(tokenizer, tmp_path / "out.npy", str(rows), None) as job:
        batches = iter_indices(tokenizer, job.samples, job.rows, 1, "encode")
        start, indices = next(batches)
        assert (start, len(indices)) == (0, 256)
        assert second_batch_read.wait(timeout=60)
        batches.close()


def test_nan_is_refused_and_no_file_is_left(tmp_path: Path) -> None:
    rows = normal(5000, 4)
    tokenizer = load(make_run(tmp_path, rows, IDENTITY))
    rows[4321, 2] = np.nan
    bad = save(tmp_path, rows, "bad")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"bad\.npy: row 4321 .*NaN"):
        encode_file(tokenizer, tmp_path / "tokens.npy", str(bad), batch_size=64)
    assert sorted(tmp_path.iterdir()) == before


def test_error_of_a_finished_scan_stops_the_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = normal(5000, 4)
    tokenizer = load(make_run(tmp_path, rows, IDENTITY))
    rows[0, 0] = np.inf
    with open_encode_job(tokenizer, tmp_path / "out.npy", str(save(tmp_path, rows, "bad")), None) as job:
        job.scan.exception()
        with pytest.raises(DataError, match=r"bad\.npy: row 0 .*infinit"):
            next(iter_indices(tokenizer, job.samples, job.rows, 64, "encode", job.scan))


def test_classes_are_scanned_before_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 4, (40, 16))
    tokenizer = load(make_run(tmp_path, rows, {"kind": "conv1d", "width": 8, "downsamples": 1, "res_blocks": 0}))
    rows[7, 3] = 4
    out = tmp_path / "tokens.npy"
    with (
        pytest.raises(DataError, match=r"bad\.npy: row 7 .*class 4 .*0 to 3"),
        open_encode_job(tokenizer, out, str(save(tmp_path, rows, "bad")), None),
    ):
        raise AssertionError("the data were not refused")


def test_scan_computes_no_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load(make_run(tmp_path, normal(50, 4), IDENTITY))
    monkeypatch.setattr(scan.Moments, "of", None)
    encode_file(tokenizer, tmp_path / "tokens.npy", str(save(tmp_path, normal(60, 4), "other")))
    assert len(np.load(tmp_path / "tokens.npy")) == 60


def test_data_changed_after_opening_are_refused(trained: TrainedRun, tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    shutil.copy(trained.data, path)
    with open_encode_job(load(trained.folder), tmp_path / "tokens.npy", str(path), None) as job:
        with path.open("r+b") as file:  # overwritten, not truncated, because the pages are mapped
            file.seek(-4, os.SEEK_END)
            file.write(bytes(4))
        with pytest.raises(DataError, match=r"images\.npy: .*changed"):
            job.manifest()


def test_out_of_memory_error_names_batch_size(trained: TrainedRun, tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"out of memory.*--batch-size"),
        open_encode_job(load(trained.folder), tmp_path / "tokens.npy", None, None),
    ):
        raise MemoryError


def test_output_within_the_data_directory_is_refused(trained: TrainedRun, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    save(shards, trained.array, "items")
    with pytest.raises(DataError, match=r"tokens\.npy: .*data directory .*shards"):
        encode_file(load(trained.folder), tmp_path / "." / "shards" / "tokens.npy", str(shards))
    encode_file(load(trained.folder), tmp_path / "tokens.npy", str(shards))
    encode_file(load(trained.folder), shards / "tokens.npy", str(shards / "items.npy"))


# Data and outputs


def test_default_data_are_all_rows_of_the_run_in_order(trained: TrainedRun, tmp_path: Path) -> None:
    tokenizer = load(trained.folder)
    encode_file(tokenizer, tmp_path / "default.npy")
    encode_file(tokenizer, tmp_path / "named.npy", str(trained.data))
    assert files(tmp_path / "default.npy") == files(tmp_path / "named.npy")
    assert np.array_equal(np.load(tmp_path / "default.npy"), tokenizer.encode(trained.array).numpy())


def test_synthetic_data_of_the_run_are_generated_again(tmp_path: Path) -> None:
    data = {"kind": "synthetic", "samples": 32, "source": {"kind": "gaussian", "dim": 3}}
    blocks = {
        "name": "synthetic",
        "seed": 5,
        "data": data,
        "model": {"encoder": IDENTITY, "quantizer": {"kind": "vector", "codebook_size": 4}},
        "training": {"steps": 1, "batch_size": 8, "device": "cpu"},
    }
    train(RunSettings.model_validate(blocks), tmp_path / "run")
    tokenizer = load(tmp_path / "run")
    encode_file(tokenizer, tmp_path / "tokens.npy")
    array = np.random.default_rng(5).standard_normal((32, 3), dtype=np.float32)
    assert np.array_equal(np.load(tmp_path / "tokens.npy"), tokenizer.encode(array).numpy())


def test_existing_outputs_are_kept_without_overwrite(trained: TrainedRun, tmp_path: Path) -> None:
    tokenizer, out = load(trained.folder), tmp_path / "tokens.npy"
    encode_file(tokenizer, out)
    before = files(out)
    with pytest.raises(DataError, match=r"tokens\.npy: .*exists.*--overwrite"):
        encode_file(tokenizer, out)
    with pytest.raises(DataError, match=r"tokens\.npy: .*exists"):
        decode_file(tokenizer, out, out)
    assert files(out) == before
    encode_file(tokenizer, out, overwrite=True)
    assert files(out) == before


def test_file_at_the_path_of_the_manifest_is_kept(trained: TrainedRun, tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("notes")
    with pytest.raises(DataError, match=r"tokens\.json: .*exists"):
        encode_file(load(trained.folder), tmp_path / "tokens.npy")
    assert (tmp_path / "tokens.json").read_text() == "notes"


@pytest.mark.parametrize("kind", ["residual", "product"])
def test_levels_are_the_last_axis_of_the_indices(tmp_path: Path, kind: str) -> None:
    inner = {"kind": "vector", "codebook_size": 4}
    quantizer = {"kind": kind, {"residual": "levels", "product": "groups"}[kind]: 2, "quantizer": inner}
    array = normal(24, 4, 5)
    tokenizer = load(make_run(tmp_path, array, IDENTITY, quantizer=quantizer, layout="CT"))
    manifest = encode_file(tokenizer, tmp_path / "tokens.npy")
    tokens = np.load(tmp_path / "tokens.npy")
    assert (tokens.shape, tokens.dtype) == ((24, 5, 2), np.uint8)
    assert (manifest.shape, manifest.grid, manifest.codebook_sizes) == ([24, 5, 2], [5], [4, 4])
    assert np.array_equal(tokens, tokenizer.encode(array))
    decode_file(tokenizer, tmp_path / "tokens.npy", tmp_path / "decoded.npy")
    assert np.array_equal(np.load(tmp_path / "decoded.npy"), tokenizer.decode(tokens))


def test_residual_quantizer_with_one_level_has_a_level_axis(tmp_path: Path) -> None:
    quantizer = {"kind": "residual", "levels": 1, "quantizer": {"kind": "vector", "codebook_size": 4}}
    tokenizer = load(make_run(tmp_path, normal(24, 4), IDENTITY, quantizer=quantizer))
    assert encode_file(tokenizer, tmp_path / "tokens.npy").shape == [24, 1, 1]
