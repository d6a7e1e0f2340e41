"""Inspecting index files, runs and directories of runs."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli import mentions
from tests.conftest import TrainedRun
from vqtool.errors import CheckpointError, DataError, VqtoolError
from vqtool.inspection import inspect
from vqtool.inspection.inspect_targets import count_index_file
from vqtool.runs.index_file import Manifest, atomic_write_indices
from vqtool.runs.model_file import read_model, write_model
from vqtool.runs.run_directory import RunDirectory


def write(path: Path, indices: np.ndarray, sizes: list[int]) -> Path:
    manifest = Manifest(
        shape=list(indices.shape),
        dtype=indices.dtype.name,
        grid=[indices.shape[1]],
        codebook_sizes=sizes,
        row_shape=[8],
        model_sha256="a" * 64,
        data_sha256="b" * 64,
        shards=[],
    )
    with atomic_write_indices(path, manifest.shape, manifest.dtype, lambda: manifest) as array:
        array[:] = indices
    return path


def test_codes_of_an_index_file_are_counted(tmp_path: Path) -> None:
    indices = np.random.default_rng(0).integers(0, 300, (50, 7), dtype=np.uint16)
    (inspection,) = inspect([write(tmp_path / "t.npy", indices, [310])])
    assert inspection.target == str(tmp_path / "t.npy")
    assert inspection.tokens == 350
    assert inspection.levels[0].counts == np.bincount(indices.reshape(-1), minlength=310).tolist()
    assert inspection.levels[0].codebook_size == 310


def test_each_level_has_its_counts_and_codebook_size(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    indices = np.stack([random.integers(0, size, (20, 5)) for size in (4, 9, 6)], axis=2).astype(np.uint8)
    (inspection,) = inspect([write(tmp_path / "t.npy", indices, [4, 9, 6])])
    assert inspection.tokens == 100
    assert [level.counts for level in inspection.levels] == [
        np.bincount(indices[:, :, level].reshape(-1), minlength=size).tolist() for level, size in enumerate((4, 9, 6))
    ]


@pytest.mark.parametrize("indices_per_block", [1, 6, 35, 10_000])
def test_counts_do_not_depend_on_the_block_size(indices_per_block: int, tmp_path: Path) -> None:
    indices = np.random.default_rng(0).integers(0, 16, (23, 5), dtype=np.uint8)
    blocks: list[tuple[int, int]] = []
    path = write(tmp_path / "t.npy", indices, [16])
    counter = count_index_file(path, lambda start, block: blocks.append((start, len(block))), indices_per_block)
    assert counter.levels[0].counts == np.bincount(indices.reshape(-1), minlength=16).tolist()
    rows = max(1, indices_per_block // 5)
    assert blocks == [(start, min(rows, 23 - start)) for start in range(0, 23, rows)]


@pytest.mark.parametrize(
    ("sizes", "shape", "message"),
    [([15], (3, 4), "index 15, .* 0 to 14;"), ([16, 9], (3, 2, 2), "index 15, .* 0 to 8;")],
)
def test_index_out_of_range_of_its_level_is_an_error(
    sizes: list[int], shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    indices = np.zeros(shape, np.uint8)
    indices[-1, ..., -1] = 15
    with pytest.raises(DataError, match=rf"t\.npy: damaged: .*{message}"):
        inspect([write(tmp_path / "t.npy", indices, sizes)])


def test_targets_keep_their_order(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.npy", np.zeros((2, 3), np.uint8), [4]) for name in "cab"]
    assert [inspection.target for inspection in inspect(paths)] == [str(path) for path in paths]


def test_model_without_code_counts_is_an_error(tmp_path: Path, trained: TrainedRun) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    write_model(run.model, read_model(run.model)[0]._replace(counts=[]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*counts"):
        inspect([run.folder])


def test_run_without_a_model_in_a_directory_is_skipped(tmp_path: Path, trained: TrainedRun) -> None:
    for name in ("good", "new"):
        shutil.copytree(trained.folder, tmp_path / name)
    (tmp_path / "new" / "model.safetensors").unlink()
    messages: list[str] = []
    inspections = inspect([tmp_path], on_skipped=lambda path, error: messages.append(str(error)))
    assert [Path(inspection.target).name for inspection in inspections] == ["good"]
    (line,) = messages
    assert mentions(line, f"{tmp_path / 'new'}: ... model.safetensors ... training.validate_every")


def test_damaged_run_in_a_directory_is_skipped_or_an_error(tmp_path: Path, trained: TrainedRun) -> None:
    for name in ("bad", "good"):
        shutil.copytree(trained.folder, tmp_path / name)
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"x")
    skipped: list[tuple[Path, VqtoolError]] = []
    inspections = inspect([tmp_path], on_skipped=lambda path, error: skipped.append((path, error)))
    assert [Path(inspection.target).name for inspection in inspections] == ["good"]
    assert [(path.name, type(error)) for path, error in skipped] == [("bad", CheckpointError)]
    with pytest.raises(CheckpointError):
        inspect([tmp_path])
