import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli import mentions
from tests.training import (
    CODEBOOK_LOSS,
    ENTROPY,
    IDENTITY,
    MLP,
    assert_equal_states,
    best_model_tensors,
    logged_metrics,
    raise_before_step,
    read_checkpoint,
    reproducible_log,
    stop_in_step,
    tiny_settings,
    update_checkpoint_marker,
    with_random_init,
)
from vqtool.config import RunSettings
from vqtool.data import BatchOrder
from vqtool.errors import CheckpointError, ConfigError, DataError, Stopped
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import default_run_dir, dry_run, train

CONV2D = {"kind": "conv2d", "width": 8, "downsamples": 1, "res_blocks": 1}
TRANSFORMER = {"kind": "transformer", "width": 8, "depth": 1, "num_tokens": 3, "patch_size": 2, "heads": 2}
GRIDS = np.random.default_rng(0).integers(0, 3, (40, 4, 5))
IMAGES = np.random.default_rng(0).random((40, 1, 5, 5), dtype=np.float32)


def stop(
    settings: RunSettings, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM
) -> None:
    """Train, or resume, up to a step."""
    with monkeypatch.context() as patch:
        stop_in_step(patch, step, number)
        with pytest.raises(Stopped, match=rf"step {step}\b.*checkpoint"):
            train(settings, folder, resume=True)


def without_seconds(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name != "seconds"}


# Reproducibility


@pytest.mark.parametrize(
    ("encoder", "array", "update", "loss"),
    [
        (MLP, None, {"kind": "ema"}, {}),
        (MLP, None, CODEBOOK_LOSS, {"entropy": 0.1}),
        (CONV2D, GRIDS, {"kind": "ema"}, {"entropy": 0.1}),
        (TRANSFORMER, IMAGES, CODEBOOK_LOSS, {}),
        (IDENTITY, IMAGES, {"kind": "ema"}, {}),
    ],
    ids=["mlp ema", "mlp codebook_loss", "conv2d", "transformer", "identity"],
)
def test_same_config_gives_byte_identical_models(
    tmp_path: Path, encoder: dict[str, Any], array: Any, update: dict[str, Any], loss: dict[str, float]
) -> None:
    models = []
    for name, seed in (("first", 0), ("second", 0), ("another seed", 1)):
        train(
            tiny_settings(tmp_path, array, encoder=encoder, update=update, loss=loss, seed=seed, steps=4),
            tmp_path / name,
        )
        models.append(RunDirectory(tmp_path / name).model.read_bytes())
    assert models[0] == models[1]
    assert models[0] != models[2]
    assert reproducible_log(tmp_path / "first") == reproducible_log(tmp_path / "second")


@pytest.mark.parametrize(
    ("encoder", "update", "loss", "step"),
    [
        (MLP, {"kind": "ema"}, {}, 1),
        (MLP, {"kind": "ema"}, {"entropy": 0.1}, 5),
        (MLP, CODEBOOK_LOSS, {}, 3),
        (MLP, CODEBOOK_LOSS, {"entropy": 0.1}, 7),
        (MLP, ENTROPY, {"entropy": 0.1}, 4),
        (IDENTITY, {"kind": "ema"}, {}, 4),
        (IDENTITY, CODEBOOK_LOSS, {}, 4),
    ],
    ids=lambda value: value.get("kind", "") if isinstance(value, dict) else str(value),
)
def test_resume_is_byte_identical(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoder: dict[str, Any],
    update: dict[str, Any],
    loss: dict[str, float],
    step: int,
) -> None:
    settings = tiny_settings(tmp_path, encoder=encoder, update=update, loss=loss)
    uninterrupted = train(settings, tmp_path / "uninterrupted")
    stop(settings, tmp_path / "resumed", monkeypatch, step)
    lines: list[str] = []
    resumed = train(settings, tmp_path / "resumed", resume=True, log=lines.append)
    assert any(mentions(line, f"{tmp_path / 'resumed'}: ... resumed ... step {step}") for line in lines)
    assert without_seconds(resumed) == without_seconds(uninterrupted)
    assert (
        RunDirectory(tmp_path / "resumed").model.read_bytes()
        == RunDirectory(tmp_path / "uninterrupted").model.read_bytes()
    )
    states = [read_checkpoint(tmp_path / name, 8) for name in ("resumed", "uninterrupted")]
    for name in ("model", "optimizer", "last_validation", "step"):
        assert_equal_states(states[0][name], states[1][name])
    assert reproducible_log(tmp_path / "resumed") == reproducible_log(tmp_path / "uninterrupted")


def test_run_can_be_stopped_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_settings(tmp_path, steps=4)
    train(settings, tmp_path / "uninterrupted")
    for step in (1, 2, 3):
        stop(settings, tmp_path / "run", monkeypatch, step, signal.SIGINT)
    train(settings, tmp_path / "run", resume=True)
    assert (
        RunDirectory(tmp_path / "run").model.read_bytes() == RunDirectory(tmp_path / "uninterrupted").model.read_bytes()
    )
    assert [line["step"] for line in logged_metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_settings(tmp_path)
    train(settings, tmp_path / "uninterrupted")
    with monkeypatch.context() as patch:
        raise_before_step(patch, 5, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "run")
    assert [line["step"] for line in logged_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    train(settings, tmp_path / "run", resume=True)
    assert reproducible_log(tmp_path / "run") == reproducible_log(tmp_path / "uninterrupted")
    assert (
        RunDirectory(tmp_path / "run").model.read_bytes() == RunDirectory(tmp_path / "uninterrupted").model.read_bytes()
    )


def test_run_killed_before_its_first_checkpoint_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_settings(tmp_path)
    train(settings, tmp_path / "uninterrupted")
    with monkeypatch.context() as patch:
        patch.setattr(BatchOrder, "batch", lambda order, at: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(settings, tmp_path / "run")
    train(settings, tmp_path / "run", resume=True)
    assert (
        RunDirectory(tmp_path / "run").model.read_bytes() == RunDirectory(tmp_path / "uninterrupted").model.read_bytes()
    )


def test_extended_run_equals_a_run_of_that_length(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path, schedule="constant", validate_every=2), tmp_path / "uninterrupted")
    train(tiny_settings(tmp_path, schedule="constant", validate_every=2, steps=4), tmp_path / "run")
    summary = train(tiny_settings(tmp_path, schedule="constant", validate_every=2), tmp_path / "run", resume=True)
    assert summary["steps"] == 8
    for name in ("model", "optimizer", "last_validation"):
        assert_equal_states(
            read_checkpoint(tmp_path / "run", 8)[name], read_checkpoint(tmp_path / "uninterrupted", 8)[name]
        )
    assert reproducible_log(tmp_path / "run") == reproducible_log(tmp_path / "uninterrupted")
    assert RunDirectory(tmp_path / "run").settings().training.steps == 8


def test_intervals_do_not_affect_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny_settings(tmp_path), tmp_path / "uninterrupted")
    stop(tiny_settings(tmp_path), tmp_path / "run", monkeypatch, 3)
    intervals = {"log_every": 2, "validate_every": 4, "checkpoint_every": 5}
    train(tiny_settings(tmp_path, **intervals), tmp_path / "run", resume=True)
    assert_equal_states(
        read_checkpoint(tmp_path / "run", 8)["model"], read_checkpoint(tmp_path / "uninterrupted", 8)["model"]
    )
    assert [line["step"] for line in logged_metrics(tmp_path / "run")] == [1, 2, 3, 4, 6, 8]


def test_seconds_include_those_before_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_settings(tmp_path)
    stop(settings, tmp_path / "run", monkeypatch, 7)
    path = RunDirectory(tmp_path / "run").checkpoints / "step-000000007.pt"
    torch.save({**read_checkpoint(tmp_path / "run", 7), "seconds": 1000.0}, path)
    update_checkpoint_marker(path)
    assert 1000 < train(settings, tmp_path / "run", resume=True)["seconds"] < 1060


# The run directory


def test_files_of_a_run(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path), tmp_path / "run")
    names = sorted(path.name.partition(".tfevents")[0] for path in (tmp_path / "run").iterdir())
    expected = ["checkpoints", "config.yaml", "events.out", "metrics.jsonl", "model.safetensors", "summary.json"]
    assert names == sorted([*expected, "projector", "projector_config.pbtxt"])


def test_config_of_the_run_repeats_the_run(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path), tmp_path / "run")
    train(RunDirectory(tmp_path / "run").settings(), tmp_path / "again")
    assert RunDirectory(tmp_path / "again").model.read_bytes() == RunDirectory(tmp_path / "run").model.read_bytes()


def test_summary_has_best_and_final_metrics(tmp_path: Path) -> None:
    summary = train(tiny_settings(tmp_path), tmp_path / "run")
    lines = {line["step"]: line for line in logged_metrics(tmp_path / "run") if "validation/loss/total" in line}
    assert json.loads(RunDirectory(tmp_path / "run").summary.read_text()) == summary
    assert (summary["name"], summary["steps"]) == ("tiny", 8)
    assert summary["best_metric"] == "validation/loss/reconstruction"
    assert summary["final"].items() <= lines[8].items()
    assert summary["best"].items() <= lines[summary["best_step"]].items()
    assert {"codebook/usage", "validation/loss/total"} <= set(summary["best"])
    assert summary["seconds"] > 0


def test_existing_run_is_an_error(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path, steps=1), tmp_path / "run")
    before = RunDirectory(tmp_path / "run").model.read_bytes()
    with pytest.raises(CheckpointError, match=r"/run: .*--resume .*--overwrite"):
        train(tiny_settings(tmp_path, steps=1, seed=1), tmp_path / "run")
    assert RunDirectory(tmp_path / "run").model.read_bytes() == before


def test_overwrite_replaces_the_run_but_no_other_files(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path, steps=4, checkpoint_every=1), tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("notes")
    train(tiny_settings(tmp_path, steps=2, seed=1), tmp_path / "run", overwrite=True)
    train(tiny_settings(tmp_path, steps=2, seed=1), tmp_path / "fresh")
    assert RunDirectory(tmp_path / "run").model.read_bytes() == RunDirectory(tmp_path / "fresh").model.read_bytes()
    names = sorted(path.name for path in RunDirectory(tmp_path / "run").checkpoints.iterdir())
    assert names == ["step-000000002.json", "step-000000002.pt"]
    assert [line["step"] for line in logged_metrics(tmp_path / "run")] == [1, 2]
    assert len(list((tmp_path / "run").glob("events.*"))) == 1
    assert (tmp_path / "run" / "notes.txt").read_text() == "notes"


def test_overwrite_with_invalid_settings_keeps_the_run(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path, steps=1), tmp_path / "run")
    before = RunDirectory(tmp_path / "run").model.read_bytes()
    with pytest.raises(ConfigError, match=r"model\.encoder\.kind: conv1d"):
        train(tiny_settings(tmp_path, encoder={"kind": "conv1d"}), tmp_path / "run", overwrite=True)
    settings = tiny_settings(tmp_path)
    (tmp_path / "data.npy").unlink()
    with pytest.raises(DataError, match="does not exist"):
        train(settings, tmp_path / "run", overwrite=True)
    assert RunDirectory(tmp_path / "run").model.read_bytes() == before
    assert RunDirectory(tmp_path / "run").summary.exists()


@pytest.mark.parametrize("resume", [False, True])
def test_other_files_with_the_names_of_run_files_are_not_removed(tmp_path: Path, resume: bool) -> None:
    folder = tmp_path / "project"
    (folder / "checkpoints").mkdir(parents=True)
    other_files = [folder / "model.safetensors", folder / "metrics.jsonl", folder / "checkpoints" / "epoch-1.ckpt"]
    for path in other_files:
        path.write_text("not of a run")
    with pytest.raises(CheckpointError, match="project"):
        train(tiny_settings(tmp_path, steps=1), folder, resume=resume)
    assert [path.read_text() for path in other_files] == ["not of a run"] * 3


def test_run_directory_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/run: .*--run-dir"):
        train(tiny_settings(tmp_path, steps=1), tmp_path / "file" / "run")


def test_default_run_directory_is_named_after_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = tiny_settings(tmp_path, steps=1)
    assert default_run_dir(settings) == Path("runs/tiny")
    train(settings)
    assert RunDirectory(tmp_path / "runs" / "tiny").model.exists()


# Resuming


def test_resume_without_a_run_starts_one(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path, steps=2), tmp_path / "fresh")
    train(tiny_settings(tmp_path, steps=2), tmp_path / "run", resume=True)
    assert RunDirectory(tmp_path / "run").model.read_bytes() == RunDirectory(tmp_path / "fresh").model.read_bytes()


def test_finished_run_without_checkpoints_cannot_be_extended(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path, steps=2), tmp_path / "run")
    model = RunDirectory(tmp_path / "run").model.read_bytes()
    for path in RunDirectory(tmp_path / "run").checkpoint_files():
        path.unlink()
    with pytest.raises(CheckpointError, match=r"/run: .*checkpoint .*--overwrite"):
        train(tiny_settings(tmp_path, steps=4), tmp_path / "run", resume=True)
    assert RunDirectory(tmp_path / "run").model.read_bytes() == model


def test_interrupted_extension_has_no_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny_settings(tmp_path, steps=4), tmp_path / "run")
    stop(tiny_settings(tmp_path, steps=8), tmp_path / "run", monkeypatch, 6)
    assert not RunDirectory(tmp_path / "run").summary.exists()


@pytest.mark.parametrize("kills", range(0, 60, 3))
def test_overwrite_killed_at_any_point_can_be_resumed(tmp_path: Path, kills: int) -> None:
    settings = tiny_settings(tmp_path, steps=2, checkpoint_every=1)
    train(settings, tmp_path / "run")
    train(settings, tmp_path / "uninterrupted")
    remaining = [kills]

    def exit_at_event(event: str, arguments: Any) -> None:
        if event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir") and str(tmp_path / "run") in str(arguments):
            remaining[0] -= 1
            if remaining[0] == 0:
                os._exit(9)

    child = os.fork()
    if not child:
        sys.addaudithook(exit_at_event)
        train(settings, tmp_path / "run", overwrite=True)
        os._exit(0)
    os.waitpid(child, 0)
    train(settings, tmp_path / "run", resume=True)
    assert (
        RunDirectory(tmp_path / "run").model.read_bytes() == RunDirectory(tmp_path / "uninterrupted").model.read_bytes()
    )


@pytest.mark.parametrize("call", [train, dry_run])
@pytest.mark.parametrize("key", ["path", "validation"])
def test_data_folder_cannot_be_the_run_directory(tmp_path: Path, key: str, call: Callable[..., Any]) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    settings = tiny_settings(tmp_path, data={key: str(shards)})
    shutil.copy(tmp_path / "data.npy", shards)
    with pytest.raises(ConfigError, match=r"shards: .*data.*--run-dir"):
        call(settings, tmp_path / "." / "shards")
    assert [path.name for path in shards.iterdir()] == ["data.npy"]
    call(settings, shards / "run")


@pytest.mark.parametrize("steps", [4, 2])
def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path, steps: int) -> None:
    summary = train(tiny_settings(tmp_path, steps=4), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    lines: list[str] = []
    assert train(tiny_settings(tmp_path, steps=steps), tmp_path / "run", resume=True, log=lines.append) == summary
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path / 'run'}: ")
    assert "step 4" in lines[0]
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_resume_writes_a_missing_summary(tmp_path: Path) -> None:
    summary = train(tiny_settings(tmp_path, steps=4), tmp_path / "run")
    RunDirectory(tmp_path / "run").summary.unlink()
    assert train(tiny_settings(tmp_path, steps=4), tmp_path / "run", resume=True) == summary


def test_resume_with_fewer_steps_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(tiny_settings(tmp_path), tmp_path / "run", monkeypatch, 2)
    with pytest.raises(ConfigError, match=r"training\.steps"):
        train(tiny_settings(tmp_path, steps=1), tmp_path / "run", resume=True)


def test_resume_with_changed_settings_is_an_error_that_lists_them(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path, steps=2), tmp_path / "run")
    changed = tiny_settings(
        tmp_path, encoder={"kind": "mlp", "width": 9, "layers": 1}, seed=1, batch_size=8, steps=3, log_every=9
    )
    with pytest.raises(ConfigError) as error:
        train(changed, tmp_path / "run", resume=True)
    message = str(error.value)
    assert mentions(message, f"{tmp_path / 'run'}: ... --run-dir")
    assert set(re.findall(r"([\w.]+) [a-z ]* (\d+) to (\d+)", message)) == {
        ("seed", "0", "1"),
        ("model.encoder.width", "8", "9"),
        ("model.quantizer.codebook_dim", "8", "9"),
        ("model.decoder.width", "8", "9"),
        ("training.batch_size", "16", "8"),
    }


def test_resume_with_data_of_another_shape_is_an_error(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path, steps=2), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data\.channels .* 4 to 5"):
        train(tiny_settings(tmp_path, np.zeros((60, 5), dtype=np.float32), steps=3), tmp_path / "run", resume=True)


def test_run_without_a_name_can_be_resumed(tmp_path: Path) -> None:
    unnamed = tiny_settings(tmp_path, steps=1).model_copy(update={"name": None})
    train(unnamed, tmp_path / "run")
    longer = tiny_settings(tmp_path, steps=2).model_copy(update={"name": None})
    assert train(longer, tmp_path / "run", resume=True)["steps"] == 2


def test_device_may_change_on_resume(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path, steps=1), tmp_path / "run")
    assert train(tiny_settings(tmp_path, steps=2, device="auto"), tmp_path / "run", resume=True)["steps"] == 2


def test_extension_that_differs_from_the_longer_run_logs_the_reasons(tmp_path: Path) -> None:
    lines: list[str] = []
    train(tiny_settings(tmp_path, steps=4), tmp_path / "run")
    train(tiny_settings(tmp_path, steps=8), tmp_path / "run", resume=True, log=lines.append)
    (line,) = [line for line in lines if "extended" in line]
    assert mentions(line, "4 to 8 ... training.schedule: cosine ... sample")


def test_extension_that_equals_the_longer_run_logs_nothing(tmp_path: Path) -> None:
    lines: list[str] = []
    settings = {"schedule": "constant", "validate_every": 2}
    train(with_random_init(tiny_settings(tmp_path, steps=4, **settings)), tmp_path / "run")
    train(
        with_random_init(tiny_settings(tmp_path, steps=8, **settings)), tmp_path / "run", resume=True, log=lines.append
    )
    assert not [line for line in lines if "extended" in line]


@pytest.mark.parametrize("threads", [0, 3])
def test_models_do_not_depend_on_loader_threads(tmp_path: Path, threads: int) -> None:
    train(tiny_settings(tmp_path), tmp_path / "one")
    train(tiny_settings(tmp_path, loader_threads=threads), tmp_path / "other")
    assert RunDirectory(tmp_path / "one").model.read_bytes() == RunDirectory(tmp_path / "other").model.read_bytes()


# training.init_from


def test_init_from_loads_the_model_of_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny_settings(tmp_path), tmp_path / "first")
    lines: list[str] = []
    monkeypatch.chdir(tmp_path)
    settings = tiny_settings(
        tmp_path, init_from="first", steps=1, learning_rate=1e-30, update={"kind": "ema", "decay": 0.999}
    )
    train(settings, tmp_path / "second", log=lines.append)
    before, after = best_model_tensors(tmp_path / "first"), best_model_tensors(tmp_path / "second")
    for name in ("encoder.net.0.weight", "data_io.mean", "quantizer.initializer.done"):
        assert torch.allclose(before[name], after[name]), name
    assert any(mentions(line, f"{tmp_path / 'first'} ... step 8") for line in lines)
    assert RunDirectory(tmp_path / "second").settings().training.init_from == str(tmp_path / "first")


def test_resume_does_not_need_the_run_of_init_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny_settings(tmp_path), tmp_path / "first")
    settings = tiny_settings(tmp_path, init_from=str(tmp_path / "first"))
    train(settings, tmp_path / "uninterrupted")
    stop(settings, tmp_path / "run", monkeypatch, 5)
    shutil.rmtree(tmp_path / "first")
    train(settings, tmp_path / "run", resume=True)
    assert (
        RunDirectory(tmp_path / "run").model.read_bytes() == RunDirectory(tmp_path / "uninterrupted").model.read_bytes()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": {"kind": "mlp", "width": 9, "layers": 1}}, r"/first .*encoder\.net"),
        ({"data": {"normalize": "none"}}, r"/first .*data\.normalize: global, .* none; set data\.normalize to global"),
    ],
)
def test_init_from_with_another_model_or_normalisation_is_an_error(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    train(tiny_settings(tmp_path), tmp_path / "first")
    with pytest.raises(ConfigError, match=r"training\.init_from: .*" + message):
        train(tiny_settings(tmp_path, init_from=str(tmp_path / "first"), **changes), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_missing_init_from_is_an_error_and_keeps_the_run(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path), tmp_path / "run")
    before = RunDirectory(tmp_path / "run").model.read_bytes()
    with pytest.raises(CheckpointError, match="absent: "):
        train(tiny_settings(tmp_path, init_from=str(tmp_path / "absent")), tmp_path / "run", overwrite=True)
    assert RunDirectory(tmp_path / "run").model.read_bytes() == before


# Locking and memory


def test_second_process_in_the_same_run_directory_is_an_error(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run").locked(), pytest.raises(CheckpointError, match="another process"):
        train(tiny_settings(tmp_path), tmp_path / "run")


def test_too_large_batch_is_an_error_before_memory_is_allocated(tmp_path: Path) -> None:
    wide = {"kind": "mlp", "width": 4096, "layers": 8}
    with pytest.raises(DataError, match=r"training\.batch_size: .*16,777,216 .*needs"):
        train(tiny_settings(tmp_path, encoder=wide, batch_size=1 << 24), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_logits_that_do_not_fit_in_memory_are_an_error(tmp_path: Path) -> None:
    grids = np.zeros((20, 8, 8), dtype=np.int64)
    settings = tiny_settings(
        tmp_path, grids, data={"classes": 1_000_000}, encoder={"kind": "conv2d", "width": 2}, batch_size=10_000
    )
    with pytest.raises(DataError, match=r"training\.batch_size: .*10,000 .*needs [\d,.]{5,} GB"):
        dry_run(settings, tmp_path / "run")


def test_out_of_memory_error_names_keys_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_out_of_memory(*args: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("vqtool.training.step.Stepper.forward", raise_out_of_memory)
    with pytest.raises(ConfigError, match=r"out of memory.*training\.batch_size"):
        train(tiny_settings(tmp_path), tmp_path / "run")
