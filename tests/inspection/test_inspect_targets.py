"""What inspect counts."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TrainedRun
from vqtool.errors import CheckpointError, DataError, VqtoolError
from vqtool.inspection import inspect
from vqtool.inspection import inspect_targets as figures
from vqtool.runs.index_file import Manifest, writing_indices
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
    with writing_indices(path, manifest.shape, manifest.dtype, lambda: manifest) as array:
        array[:] = indices
    return path


def test_counts_are_those_of_the_indices(tmp_path: Path) -> None:
    indices = np.random.default_rng(0).integers(0, 300, (50, 7), dtype=np.uint16)
    (found,) = inspect([write(tmp_path / "t.npy", indices, [310])])
    assert found.target == str(tmp_path / "t.npy")
    assert found.tokens == 350
    assert found.levels[0].counts == np.bincount(indices.reshape(-1), minlength=310).tolist()
    assert found.levels[0].codebook_size == 310


def test_each_level_has_its_own_counts_and_size(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    indices = np.stack([random.integers(0, size, (20, 5)) for size in (4, 9, 6)], axis=2).astype(np.uint8)
    (found,) = inspect([write(tmp_path / "t.npy", indices, [4, 9, 6])])
    assert found.tokens == 100
    assert [level.counts for level in found.levels] == [
        np.bincount(indices[:, :, level].reshape(-1), minlength=size).tolist() for level, size in enumerate((4, 9, 6))
    ]


@pytest.mark.parametrize("block", [1, 6, 35, 10_000])
def test_the_block_that_is_counted_at_a_time_changes_nothing(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indices = np.random.default_rng(0).integers(0, 16, (23, 5), dtype=np.uint8)
    monkeypatch.setattr(figures, "_BLOCK", block)
    (found,) = inspect([write(tmp_path / "t.npy", indices, [16])])
    assert found.levels[0].counts == np.bincount(indices.reshape(-1), minlength=16).tolist()


@pytest.mark.parametrize(
    ("sizes", "shape", "message"),
    [([15], (3, 4), "index 15, but .* 0 to 14;"), ([16, 9], (3, 2, 2), "index 15, but .* 0 to 8;")],
)
def test_an_index_beyond_its_level_is_refused(
    sizes: list[int], shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    indices = np.zeros(shape, np.uint8)
    indices[-1, ..., -1] = 15
    with pytest.raises(DataError, match=rf"t\.npy: damaged: contains {message}"):
        inspect([write(tmp_path / "t.npy", indices, sizes)])


def test_targets_keep_their_order(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.npy", np.zeros((2, 3), np.uint8), [4]) for name in "cab"]
    assert [found.target for found in inspect(paths)] == [str(path) for path in paths]


def test_a_model_without_counts_is_refused(tmp_path: Path, trained: TrainedRun) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    write_model(run.model, read_model(run.model)[0]._replace(counts=[]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors has no code counts"):
        inspect([run.folder])


def test_one_unfinished_run_does_not_hide_the_others(tmp_path: Path, trained: TrainedRun) -> None:
    for name in ("good", "new"):
        shutil.copytree(trained.folder, tmp_path / name)
    (tmp_path / "new" / "model.safetensors").unlink()
    told: list[str] = []
    found = inspect([tmp_path], skipped=lambda path, error: told.append(str(error)))
    assert [Path(each.target).name for each in found] == ["good"]
    (line,) = told
    assert line.startswith(f"{tmp_path / 'new'}: has no model.safetensors yet")
    assert "training.validate_every" in line


def test_a_damaged_run_of_a_folder_is_told_to_who_asks(tmp_path: Path, trained: TrainedRun) -> None:
    for name in ("bad", "good"):
        shutil.copytree(trained.folder, tmp_path / name)
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"x")
    told: list[tuple[Path, VqtoolError]] = []
    found = inspect([tmp_path], skipped=lambda path, error: told.append((path, error)))
    assert [Path(each.target).name for each in found] == ["good"]
    assert [(path.name, type(error)) for path, error in told] == [("bad", CheckpointError)]
    with pytest.raises(CheckpointError):
        inspect([tmp_path])
