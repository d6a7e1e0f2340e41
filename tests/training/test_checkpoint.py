import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training import assert_same, tiny
from vqtool.errors import CheckpointError
from vqtool.run import Run
from vqtool.training import train
from vqtool.training.checkpoint import State, Validation, load_checkpoint, save_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    return run


def state_at(step: int) -> State:
    return State(
        step=step,
        model={"weight": torch.rand(3, 4), "counts": torch.arange(5)},
        optimizer={"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        best=Validation(2, {"validation/loss/total": 0.25}),
        last=Validation(None, {}),
        seconds=1.5,
    )


def names(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def test_a_state_comes_back_whole(run: Run) -> None:
    state = state_at(7)
    save_checkpoint(run, state, keep=1)
    loaded = load_checkpoint(run)
    assert loaded is not None
    assert_same(vars(loaded), vars(state))


def test_the_newest_is_loaded(run: Run) -> None:
    for step in (9, 10, 100):
        save_checkpoint(run, state_at(step), keep=5)
    loaded = load_checkpoint(run)
    assert loaded is not None
    assert loaded.step == 100


def test_where_there_is_none_there_is_none(run: Run) -> None:
    assert load_checkpoint(run) is None
    (run.checkpoints / ".step-000000003.pt.x.part").write_bytes(b"half")
    assert load_checkpoint(run) is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_last_are_kept(run: Run, keep: int) -> None:
    for step in (5, 50, 500, 5000):
        save_checkpoint(run, state_at(step), keep)
    assert names(run) == [f"step-{step:09d}.pt" for step in (5, 50, 500, 5000)[-keep:]]


def test_training_keeps_as_many_as_asked_for(tmp_path: Path) -> None:
    train(tiny(tmp_path, checkpoint_every=2, keep_checkpoints=3), tmp_path / "run")
    assert names(Run(tmp_path / "run")) == [f"step-{step:09d}.pt" for step in (4, 6, 8)]


def test_one_that_cannot_be_written_leaves_those_before(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(run, state_at(1), keep=1)

    def fail(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(run, state_at(2), keep=1)
    assert names(run) == ["step-000000001.pt"]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def scramble(content: bytes) -> bytes:
    return random.Random(0).randbytes(len(content))


@pytest.mark.parametrize(
    "damage", [cut, scramble, lambda content: b"", lambda content: b"PK\x03\x04", lambda content: b"a note"]
)
def test_a_damaged_one_is_named(run: Run, damage: Callable[[bytes], bytes]) -> None:
    save_checkpoint(run, state_at(3), keep=1)
    (path,) = run.checkpoints.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"step-000000003.pt: damaged; remove it to resume from the one before"):
        load_checkpoint(run)


@pytest.mark.parametrize("record", ["data.pkl", "data/0"])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_single_byte_gone_wrong_is_noticed(run: Run, record: str, share: float) -> None:
    save_checkpoint(run, state_at(3), keep=1)
    (path,) = run.checkpoints.iterdir()
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(f"/{record}")]
        data = archive.read(name)
    content[content.index(data) + int(share * len(data))] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-000000003.pt: damaged"):
        load_checkpoint(run)


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, torch.zeros(3)])
def test_what_is_no_checkpoint_is_no_traceback(run: Run, content: object) -> None:
    torch.save(content, run.checkpoints / "step-000000003.pt")
    with pytest.raises(CheckpointError, match=r"step-000000003\.pt"):
        load_checkpoint(run)


def test_one_of_another_version_is_refused(run: Run) -> None:
    save_checkpoint(run, state_at(3), keep=1)
    (path,) = run.checkpoints.iterdir()
    torch.save({**torch.load(path, weights_only=True), "version": 99}, path)
    with pytest.raises(CheckpointError, match=r"step-000000003.pt: written by another version of vqtool"):
        load_checkpoint(run)


class _Code:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (pytest.fail, ("code in a checkpoint ran",))


def test_code_in_one_never_runs(run: Run) -> None:
    torch.save({"version": 1, "step": _Code()}, run.checkpoints / "step-000000003.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(run)


def test_without_the_damaged_one_a_run_goes_on_from_the_one_before(tmp_path: Path) -> None:
    settings = tiny(tmp_path)
    train(settings, tmp_path / "run")
    run = Run(tmp_path / "run")
    expected = run.model.read_bytes()
    last = run.checkpoints / "step-000000008.pt"
    last.write_bytes(cut(last.read_bytes()))
    run.summary.unlink()
    with pytest.raises(CheckpointError, match="remove it"):
        train(settings, tmp_path / "run", resume=True)
    last.unlink()
    train(settings, tmp_path / "run", resume=True)
    assert run.model.read_bytes() == expected
