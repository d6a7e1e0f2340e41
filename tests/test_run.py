"""The run directory: what is where, written and read."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import TrainedRun
from vqtool.config import RunSettings
from vqtool.errors import CheckpointError, ConfigError
from vqtool.run import Run
from vqtool.semantic_ids import Distinct

SETTINGS = RunSettings.model_validate(
    {
        "name": "r",
        "data": {"kind": "tensors", "path": "/x.npy"},
        "model": {"encoder": {"kind": "mlp"}, "quantizer": {"kind": "vector"}},
    }
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "r")
    run.create(SETTINGS)
    return run


def test_a_run_is_there_once_its_config_is(tmp_path: Path) -> None:
    run = Run(tmp_path / "a" / "b")
    assert not run.exists
    run.create(SETTINGS)
    assert run.exists
    assert run.settings() == SETTINGS
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "config.yaml"]


def test_a_folder_may_be_given_as_text(run: Run) -> None:
    assert Run(str(run.folder)).settings() == SETTINGS


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a run: it has no config\.yaml"):
        Run(tmp_path).settings()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/run: cannot be made"):
        Run(tmp_path / "file" / "run").create(SETTINGS)


def test_a_damaged_config_is_named(run: Run) -> None:
    run.config.write_text("data: 5\n")
    with pytest.raises(ConfigError, match=r"config\.yaml:1: data: "):
        run.settings()


def test_clear_removes_a_run_and_nothing_else(trained: TrainedRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    Run(folder).clear()
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "plots"]
    Run(tmp_path / "nothing").clear()
    assert not (tmp_path / "nothing").exists()


def test_a_model_reads_back_with_its_counts_and_digest(run: Run) -> None:
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False])}
    counts = [torch.tensor([3, 0, 2]), torch.tensor([1, 4])]
    run.save_model(state, counts)
    saved = run.load_model()
    assert set(saved.state) == set(state)
    assert all(torch.equal(saved.state[name], state[name]) for name in state)
    assert [hits.tolist() for hits in saved.counts] == [[3, 0, 2], [1, 4]]
    assert saved.distinct is None
    assert saved.sha256 == hashlib.sha256(run.model.read_bytes()).hexdigest()


def test_the_distinct_ids_read_back(run: Run) -> None:
    run.save_model({"a": torch.ones(3)}, [torch.tensor([1])], Distinct(rows=2**40, ids=7))
    saved = run.load_model()
    assert saved.distinct == Distinct(2**40, 7)
    assert set(saved.state) == {"a"}


def test_counts_stay_in_the_order_of_the_levels(run: Run) -> None:
    run.save_model({}, [torch.tensor([level]) for level in range(12)])
    assert [hits.item() for hits in run.load_model().counts] == list(range(12))


def test_weights_that_are_views_are_written_whole(run: Run) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    run.save_model({"turned": whole.T, "part": whole[1:, :2]}, [])
    weights = run.load_model().state
    assert torch.equal(weights["turned"], whole.T)
    assert torch.equal(weights["part"], whole[1:, :2])


def test_equal_models_are_equal_bytes(run: Run) -> None:
    state = {name: torch.ones(3) for name in ("z", "a", "m")}
    run.save_model(state, [torch.tensor([1])])
    first = run.model.read_bytes()
    run.save_model(dict(reversed(state.items())), [torch.tensor([1])])
    assert run.model.read_bytes() == first


def test_a_run_without_a_model_says_what_writes_it(run: Run) -> None:
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors yet; .*training\.validate_every"):
        run.load_model()


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 64, b"cut"])
def test_a_damaged_model_is_named(content: bytes, run: Run) -> None:
    run.save_model({"a": torch.ones(100)}, [])
    run.model.write_bytes(run.model.read_bytes()[:-10] if content == b"cut" else content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        run.load_model()


def test_a_summary_reads_back(run: Run) -> None:
    assert run.read_summary() is None
    summary = {"steps": 3, "seconds": 1.5, "best_step": 2, "best": {"a": 0.5}, "final": {"a": 0.75}}
    run.write_summary(summary)
    assert run.read_summary() == summary


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"5", b"[]", b'{"steps": 30}'])
def test_a_damaged_summary_is_named(content: bytes, run: Run) -> None:
    run.summary.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"summary\.json: damaged"):
        run.read_summary()
