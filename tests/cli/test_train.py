"""`vqtool train`: files of the run directory, output, exit codes and resuming."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.cli import mentions
from tests.conftest import TINY, Result, TrainedRun
from tests.training import stop_in_step
from vqtool.config import load_config

Command = Callable[..., Result]

LOSSES = {f"loss/{name}" for name in ("total", "reconstruction", "commitment", "entropy")}
TRAINING_TAGS = LOSSES | {"optimizer/learning_rate", "throughput/samples_per_second"}
VALIDATION_TAGS = {f"validation/{tag}" for tag in LOSSES} | {
    f"codebook/{name}"
    for name in ("usage", "perplexity", "entropy", "soft_entropy", "sample_entropy", "dead", "expected_used")
}
# Tags that only findings use, and tags that are logged only if they apply.
OPTIONAL_TAGS = {"validation/loss/shuffled", "validation/loss/unshuffled", "findings"} | {
    f"codebook/{name}"
    for name in ("error", "spread", "outside", "duplicates", "halving", "movement", "never_hit", "last_hit")
}


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: TrainedRun) -> Path:
    """A working directory that contains only the config tiny.yaml and its data."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained.data, "images.npy")
    Path("tiny.yaml").write_text(TINY.format(path="images.npy"))
    return tmp_path


@pytest.fixture
def finished(workdir: Path, trained: TrainedRun) -> Path:
    """A copy of the finished run as runs/tiny, with its data in the working directory."""
    run = workdir / "runs" / "tiny"
    shutil.copytree(trained.folder, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(trained.data), str(workdir / "images.npy")))
    return run


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensorboard_events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"scalars": 0, "histograms": 0, "images": 0}).Reload()


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Files of the run directory


def test_run_directory_has_exactly_the_documented_files(trained: TrainedRun) -> None:
    names = {path.name for path in trained.folder.iterdir()} - {"projector", "projector_config.pbtxt"}
    (events,) = (name for name in names if name.startswith("events.out.tfevents."))
    assert names - {events} == {"config.yaml", "model.safetensors", "checkpoints", "metrics.jsonl", "summary.json"}


def test_logged_steps_have_the_documented_tags(trained: TrainedRun) -> None:
    tags = {line.pop("step"): set(line) - OPTIONAL_TAGS for line in read_metrics(trained.folder)}
    assert tags == {
        4: TRAINING_TAGS,
        6: VALIDATION_TAGS,
        8: TRAINING_TAGS,
        12: TRAINING_TAGS | VALIDATION_TAGS,
    }


def test_tensorboard_scalars_equal_metrics_jsonl_in_float32(trained: TrainedRun) -> None:
    events = tensorboard_events(trained.folder)
    shown = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    written = {
        (tag, line["step"]): float(np.float32(value))
        for line in read_metrics(trained.folder)
        for tag, value in line.items()
        if tag not in ("step", "findings")
    }
    assert shown == written


def test_tensorboard_has_histograms_of_counts_and_images(trained: TrainedRun) -> None:
    tags = tensorboard_events(trained.folder)
    assert tags.Tags()["histograms"] == ["codebook/counts"]
    assert tags.Tags()["images"] == ["reconstruction/images"]
    assert [event.step for event in tags.Histograms("codebook/counts")] == [6, 12]
    assert [(image.step, image.height) for image in tags.Images("reconstruction/images")] == [(6, 17), (12, 17)]
    # The histogram has one entry per code, and its sum is the number of tokens.
    histogram = tags.Histograms("codebook/counts")[-1].histogram_value
    assert (histogram.num, histogram.sum) == (16, 6 * 16)


def test_summary_has_best_and_final_metrics(trained: TrainedRun) -> None:
    summary = json.loads((trained.folder / "summary.json").read_text())
    passes = {line["step"]: line for line in read_metrics(trained.folder) if "codebook/usage" in line}
    best = min(passes, key=lambda step: passes[step]["validation/loss/reconstruction"])
    assert set(summary) == {"name", "steps", "seconds", "best_metric", "best_step", "best", "final"}
    assert (summary["name"], summary["steps"], summary["best_step"]) == ("tiny", 12, best)
    assert summary["best"].items() <= passes[best].items()
    assert summary["final"].items() <= passes[12].items()
    assert set(summary["best"]) & set(summary["final"]) >= VALIDATION_TAGS
    assert summary["seconds"] > 0


def test_config_of_the_run_is_resolved(trained: TrainedRun) -> None:
    settings = load_config(trained.folder / "config.yaml")
    assert settings.data.path == str(trained.data)
    assert (settings.data.layout, settings.data.channels, settings.data.size) == ("CHW", 1, [8, 8])
    assert (settings.data.classes, settings.data.dtype) == (None, "float32")
    assert settings.model.decoder == settings.model.encoder
    assert settings.loss.reconstruction == "mse"
    assert settings.training == load_config(trained.config).training


def test_relative_paths_are_stored_absolute(workdir: Path, vqtool: Command) -> None:
    np.save("held_out.npy", np.load("images.npy")[:5])
    result = vqtool(
        "train", "--config", "tiny.yaml", "--set", "data.validation=held_out.npy", "--set", "training.steps=1"
    )
    assert result.code == 0
    data = load_config(workdir / "runs/tiny/config.yaml").data
    assert (data.path, data.validation) == (str(workdir / "images.npy"), str(workdir / "held_out.npy"))


# Output


def test_output_has_final_metrics_run_directory_and_next_commands(workdir: Path, vqtool: Command) -> None:
    result = vqtool("train", "--config", "tiny.yaml", "--set", "training.steps=1")
    assert result.code == 0
    for words in ("validation/loss/reconstruction", "codebook/usage", "codebook/perplexity", "runs/tiny"):
        assert words in result.out
    assert "vqtool encode runs/tiny" in result.out
    assert "vqtool inspect runs/tiny" in result.out
    reading, start, validation, *_ = result.err.splitlines()
    assert mentions(reading, "data: ... (1, 8, 8) ... float32 ... CHW ... normalize global ... 54 ")
    assert "k-means" in start
    assert "val_reconstruction" in validation


def test_output_has_the_collision_rate_if_samples_are_vectors(workdir: Path, vqtool: Command) -> None:
    np.save("vectors.npy", np.random.default_rng(0).random((60, 6), dtype=np.float32))
    images = ["--config", "tiny.yaml", "--set", "training.steps=1"]
    assert "codebook/collision_rate" not in vqtool("train", *images).out
    rows = ["--set", "data.path=vectors.npy", "--set", "model.encoder={kind: identity}", "--set", "name=rows"]
    result = vqtool("train", *images, *rows, "--set", "model.quantizer.codebook_dim=auto")
    assert result.code == 0
    rate = read_metrics(workdir / "runs/rows")[-1]["codebook/collision_rate"]
    (line,) = (line for line in result.out.splitlines() if "codebook/collision_rate" in line)
    assert line.split().count(f"{rate:.2%}") == 2


def test_json_is_one_object_and_messages_go_to_standard_error(workdir: Path, vqtool: Command) -> None:
    result = vqtool("train", "--config", "tiny.yaml", "--set", "training.steps=1", "--json")
    assert result.code == 0
    assert json.loads(result.out) == {
        "run": "runs/tiny",
        **json.loads((workdir / "runs/tiny/summary.json").read_text()),
    }
    assert result.out.count("\n") == 1
    assert "val_reconstruction" in result.err


def test_brackets_in_names_are_printed_literally(workdir: Path, vqtool: Command) -> None:
    shutil.copy("tiny.yaml", "[bold]x[nothing].yaml")
    plan = vqtool("train", "--config", "[bold]x[nothing].yaml", "--dry-run")
    assert "runs/[bold]x[nothing] " in plan.out
    result = vqtool("train", "--config", "[bold]x[nothing].yaml", "--set", "training.steps=1")
    assert "  vqtool inspect 'runs/[bold]x[nothing]'\n" in result.out  # quoted for the shell
    assert vqtool("inspect", "runs/[bold]x[nothing]").out.startswith("runs/[bold]x[nothing]\n")


# Dry run


def test_dry_run_writes_nothing(workdir: Path, vqtool: Command) -> None:
    before = read_tree(workdir)
    result = vqtool("train", "--config", "tiny.yaml", "--dry-run")
    assert result.code == 0
    assert read_tree(workdir) == before
    assert sorted(path.name for path in workdir.iterdir()) == ["images.npy", "tiny.yaml"]


def test_dry_run_describes_the_run(workdir: Path, vqtool: Command) -> None:
    result = vqtool("train", "--config", "tiny.yaml", "--dry-run")
    assert mentions(result.out, "54 ... 6 ... (4, 4)")
    assert "runs/tiny" in result.out
    assert "(contains a run)" not in result.out


def test_dry_run_reports_an_existing_run(finished: Path, vqtool: Command) -> None:
    before = read_tree(finished)
    assert "(contains a run)" in vqtool("train", "--config", "tiny.yaml", "--dry-run").out
    assert read_tree(finished) == before


def test_json_of_a_dry_run(workdir: Path, vqtool: Command) -> None:
    result = vqtool("train", "--config", "tiny.yaml", "--dry-run", "--json")
    assert (result.code, result.err, result.out.count("\n")) == (0, "", 1)
    plan = json.loads(result.out)
    assert (plan["run_dir"], plan["exists"], plan["device"]) == ("runs/tiny", False, "cpu")
    assert (plan["training_samples"], plan["validation_samples"], plan["steps"]) == (54, 6, 12)
    assert (plan["grid"], plan["codebook_sizes"], plan["bits_per_sample"]) == ([4, 4], [16], 64.0)
    assert plan["spec"] == {"layout": "CHW", "channels": 1, "size": [8, 8], "classes": None, "dtype": "float32"}
    assert plan["memory_bytes"] > 4 * 4 * plan["parameters"] > 0


def test_model_that_does_not_fit_memory_exits_with_2(workdir: Path, vqtool: Command) -> None:
    huge = ["model.quantizer.codebook_size=16777216", "model.quantizer.codebook_dim=65536"]
    result = vqtool("train", "--config", "tiny.yaml", "--dry-run", *(word for key in huge for word in ("--set", key)))
    assert (result.code, result.out) == (2, "")
    assert "GB of memory" in result.err


def test_dry_run_reports_an_encoder_that_does_not_fit_the_data(workdir: Path, vqtool: Command) -> None:
    result = vqtool("train", "--config", "tiny.yaml", "--dry-run", "--set", "model.encoder.kind=conv1d")
    assert result.code == 2
    assert mentions(result.err, "model.encoder.kind ... conv1d")


# Refused input


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["train", "dry run"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml ... exist ... vqtool init"),
        (["--config", "tiny.yaml", "--set", "training.step=3"], "training.step ... steps"),
        (["--config", "tiny.yaml", "--set", "data.path=nowhere.npy"], "data.path: nowhere.npy ... exist"),
        (["--config", "tiny.yaml", "--set", "data.validation=gone.npy"], "data.validation: gone.npy ... exist"),
        (["--config", "tiny.yaml", "--set", "data.path=none/*.npy"], "data.path: none/*.npy ... no file"),
        (
            ["--config", "tiny.yaml", "--set", "data.validation=wide.npy"],
            "data.validation: wide.npy ... (1, 8, 9)",
        ),
        (["--config", "tiny.yaml", "--set", "data.size=[8, 9]"], "data.size ... [8, 9] ... [8, 8]"),
        (["--config", "tiny.yaml", "--set", "data.path=nan.npy"], "nan.npy: row 1 ... NaN"),
        (["--config", "tiny.yaml", "--set", "data.path=tiny.yaml"], "data.path: tiny.yaml"),
        (["--config", "tiny.yaml", "--set", "data.path=text.npy"], "text.npy: damaged"),
        (["--config", "tiny.yaml", "--set", "data.path=two.npz"], "\n  0  float32 (60, 1, 8, 8)\n  b  float32 (2, 3)"),
        (["--config", "tiny.yaml", "--device", "cuda:99"], "training.device: cuda:99"),
        (["--config", "tiny.yaml", "--device", "gpu"], "training.device: "),
    ],
)
def test_wrong_input_exits_with_2_and_writes_nothing(
    arguments: list[str], message: str, dry: list[str], workdir: Path, vqtool: Command
) -> None:
    images = np.load("images.npy")
    np.save("nan.npy", np.stack([images[0], images[1] * np.nan]))
    np.save("wide.npy", np.zeros((4, 1, 8, 9), np.float32))
    np.savez("two.npz", **{"0": images, "b": np.zeros((2, 3), np.float32)})
    Path("text.npy").write_text("not an array")
    result = vqtool("train", *arguments, *dry)
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, message)
    assert result.err.startswith("vqtool: ")
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["0", "no", "a: b"])
def test_key_option_is_not_parsed_as_yaml(name: str, workdir: Path, vqtool: Command) -> None:
    images = np.load("images.npy")
    np.savez("two.npz", **{name: images, "other": images[:2]})
    result = vqtool(
        "train", "--config", "tiny.yaml", "--set", "data.path=two.npz", "--key", name, "--dry-run", "--json"
    )
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["training_samples"] == 54


@pytest.mark.parametrize("run_dir", ["images.npy", "images.npy/run"])
def test_run_directory_that_is_a_file_exits_with_2(run_dir: str, workdir: Path, vqtool: Command) -> None:
    result = vqtool("train", "--config", "tiny.yaml", "--run-dir", run_dir)
    assert (result.code, result.out) == (2, "")
    assert run_dir in result.err
    assert np.load("images.npy").shape == (60, 1, 8, 8)


def test_non_finite_loss_exits_with_3_and_names_the_learning_rate(workdir: Path, vqtool: Command) -> None:
    wild = ["learning_rate=1e30", "gradient_clip=null", "warmup_steps=0"]
    result = vqtool("train", "--config", "tiny.yaml", *(word for key in wild for word in ("--set", f"training.{key}")))
    assert (result.code, result.out) == (3, "")
    assert mentions(result.err, "\nvqtool: step 2 ... reconstruction")
    assert "training.learning_rate" in result.err
    assert not Path("runs/tiny/summary.json").exists()


# Run directories with contents: --resume and --overwrite


def test_existing_run_is_refused_with_resume_and_overwrite_named(finished: Path, vqtool: Command) -> None:
    before = read_tree(finished)
    result = vqtool("train", "--config", "tiny.yaml")
    assert (result.code, result.out) == (2, "")
    assert "runs/tiny" in result.err
    assert "--resume" in result.err
    assert "--overwrite" in result.err
    assert read_tree(finished) == before


def test_resume_and_overwrite_exclude_each_other(finished: Path, vqtool: Command) -> None:
    before = read_tree(finished)
    result = vqtool("train", "--config", "tiny.yaml", "--resume", "--overwrite")
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, "--resume ... --overwrite")
    assert read_tree(finished) == before


def test_overwrite_replaces_the_run_and_keeps_other_files(finished: Path, vqtool: Command) -> None:
    (finished / "notes.txt").write_text("notes")
    (finished / "tokens.npy").write_bytes(b"tokens")
    (old,) = finished.glob("events.out.tfevents.*")
    result = vqtool("train", "--config", "tiny.yaml", "--overwrite", "--set", "training.steps=2", "--set", "seed=1")
    assert result.code == 0
    assert (finished / "notes.txt").read_text() == "notes"
    assert (finished / "tokens.npy").read_bytes() == b"tokens"
    assert [path.stem for path in (finished / "checkpoints").glob("*.pt")] == ["step-000000002"]
    assert {line["step"] for line in read_metrics(finished)} == {2}
    assert not old.exists()
    assert load_config(finished / "config.yaml").seed == 1


def test_overwrite_keeps_the_old_run_if_the_new_one_cannot_start(finished: Path, vqtool: Command) -> None:
    before = read_tree(finished)
    assert vqtool("train", "--config", "tiny.yaml", "--overwrite", "--set", "data.path=gone.npy").code == 2
    assert read_tree(finished) == before


def test_overwrite_does_not_replace_the_users_config_file(workdir: Path, vqtool: Command) -> None:
    """With `--config config.yaml --run-dir .` the directory looks like a run, because it has a config.yaml."""
    config = Path("config.yaml")
    config.write_text("# notes\n" + TINY.format(path="images.npy"))
    before = config.read_text()
    result = vqtool("train", "--config", config, "--run-dir", ".", "--overwrite", "--set", "training.steps=1")
    assert result.code == 2
    assert config.read_text() == before


@pytest.mark.parametrize("name", ["model.safetensors", "summary.json", "metrics.jsonl", "checkpoints/other.bin"])
def test_files_in_a_directory_that_is_not_a_run_are_kept(name: str, workdir: Path, vqtool: Command) -> None:
    other_file = workdir / "project" / name
    other_file.parent.mkdir(parents=True)
    other_file.write_text("notes")
    result = vqtool("train", "--config", "tiny.yaml", "--run-dir", "project", "--set", "training.steps=1")
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, f"project: ... {Path(name).parts[0]} ... --run-dir")
    assert other_file.read_text() == "notes"


def test_resume_without_a_run_starts_one(workdir: Path, vqtool: Command) -> None:
    result = vqtool("train", "--config", "tiny.yaml", "--resume", "--set", "training.steps=1", "--json")
    assert result.code == 0
    assert json.loads(result.out)["steps"] == 1


def test_resume_of_a_finished_run_exits_with_0(finished: Path, vqtool: Command) -> None:
    before = read_tree(finished)
    result = vqtool("train", "--config", "tiny.yaml", "--resume", "--json")
    assert result.code == 0
    assert mentions(result.err, "runs/tiny ... finished ... step 12")
    assert json.loads(result.out) == {"run": "runs/tiny", **json.loads((finished / "summary.json").read_text())}
    assert read_tree(finished) == before


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=1", "seed ... 0 ... 1"),
        ("training.batch_size=8", "training.batch_size ... 16 ... 8"),
        ("model.encoder.width=16", "model.encoder.width ... 8 ... 16"),
        ("data.normalize=none", "data.normalize ... global ... none"),
        ("name=other", "name ... tiny ... other"),
    ],
)
def test_resume_with_a_changed_setting_names_its_key(override: str, key: str, finished: Path, vqtool: Command) -> None:
    before = read_tree(finished)
    result = vqtool("train", "--config", "tiny.yaml", "--run-dir", finished, "--resume", "--set", override)
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, key)
    assert read_tree(finished) == before


def test_resume_extends_a_run_to_more_steps(finished: Path, vqtool: Command) -> None:
    more = ["training.steps=16", "training.log_every=2", "training.validate_every=8"]
    sets = [word for key in more for word in ("--set", key)]
    result = vqtool("train", "--config", "tiny.yaml", "--resume", "--json", *sets)
    assert result.code == 0
    assert json.loads(result.out)["steps"] == 16
    assert [line["step"] for line in read_metrics(finished)] == [4, 6, 8, 12, 14, 16]
    events = tensorboard_events(finished)
    assert [event.step for event in events.Scalars("validation/loss/total")] == [6, 12, 16]
    assert load_config(finished / "config.yaml").training.steps == 16


def test_resume_without_a_checkpoint_starts_again(finished: Path, vqtool: Command) -> None:
    shutil.rmtree(finished / "checkpoints")
    (finished / "summary.json").unlink()
    assert vqtool("train", "--config", "tiny.yaml", "--resume").code == 0
    assert [line["step"] for line in read_metrics(finished)] == [4, 6, 8, 12]
    assert [event.step for event in tensorboard_events(finished).Scalars("validation/loss/total")] == [6, 12]


def test_resume_removes_log_lines_after_the_checkpoint(finished: Path, vqtool: Command) -> None:
    """The files are as after a crash that interrupted the write of a line after step 8."""
    (finished / "checkpoints" / "step-000000012.pt").unlink()
    (finished / "summary.json").unlink()
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    (finished / "metrics.jsonl").write_text("\n".join([*lines[:3], lines[3][:20]]))
    assert vqtool("train", "--config", "tiny.yaml", "--resume").code == 0
    assert [line["step"] for line in read_metrics(finished)] == [4, 6, 8, 12]
    events = tensorboard_events(finished)
    assert [event.step for event in events.Scalars("loss/total")] == [4, 8, 12]
    assert [event.step for event in events.Scalars("validation/loss/total")] == [6, 12]


@pytest.mark.parametrize("content", [b"", b"junk", b"a longer piece of junk"])
def test_damaged_checkpoint_is_skipped_with_a_message(content: bytes, finished: Path, vqtool: Command) -> None:
    (finished / "summary.json").unlink()
    newest = finished / "checkpoints" / "step-000000012.pt"
    newest.write_bytes(content)
    result = vqtool("train", "--config", "tiny.yaml", "--resume")
    assert result.code == 0
    assert "runs/tiny/checkpoints/step-000000012.pt: damaged" in result.err
    (finished / "summary.json").unlink()
    for path in (finished / "checkpoints").glob("*.pt"):
        path.write_bytes(content)
    result = vqtool("train", "--config", "tiny.yaml", "--resume")
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, "runs/tiny/checkpoints ... --overwrite")


# Signals


@pytest.fixture
def interrupted(workdir: Path, vqtool: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that SIGTERM stopped after its first step, before any validation."""
    with monkeypatch.context() as patch:
        stop_in_step(patch, 1)
        result = vqtool("train", "--config", "tiny.yaml")
    assert result.code == 143
    assert mentions(result.err, "\nvqtool: ... SIGTERM ... step 1; ... checkpoint")
    run = workdir / "runs" / "tiny"
    assert [path.name for path in (run / "checkpoints").glob("*.pt")] == ["step-000000001.pt"]
    return run


def test_run_stopped_before_its_first_validation_has_no_model(interrupted: Path, vqtool: Command) -> None:
    for arguments in (["encode", interrupted, "--out", "t.npy"], ["eval", interrupted], ["inspect", interrupted]):
        result = vqtool(*arguments)
        assert (result.code, result.out) == (2, "")
        assert mentions(result.err, f"{interrupted}: ... model.safetensors ... training.validate_every")
    assert not Path("t.npy").exists()


def test_resume_of_a_stopped_run_gives_the_same_model(interrupted: Path, trained: TrainedRun, vqtool: Command) -> None:
    assert vqtool("train", "--config", "tiny.yaml", "--resume").code == 0
    assert (interrupted / "model.safetensors").read_bytes() == (trained.folder / "model.safetensors").read_bytes()


def test_stopped_run_can_end_at_its_step_only_with_a_model(interrupted: Path, vqtool: Command) -> None:
    result = vqtool("train", "--config", "tiny.yaml", "--resume", "--set", "training.steps=1")
    assert result.code in (0, 2)
    assert (result.code == 0) == (interrupted / "model.safetensors").exists()


def test_signals_save_a_checkpoint_that_resume_continues(workdir: Path, vqtool: Command) -> None:
    """Two processes run at the same time, one per signal, to save time."""
    numbers = {"a": signal.SIGINT, "b": signal.SIGTERM}
    command = ["train", "--config", "tiny.yaml", "--set", "training.steps=300", "--json"]
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", "vqtool", *command, "--run-dir", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for name in numbers
    }
    try:
        _signal_once_logging(processes, numbers)
        ends = {name: (*process.communicate(timeout=60), process.returncode) for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    rare_logging = [
        word for every in ("log", "validate", "checkpoint") for word in ("--set", f"training.{every}_every=300")
    ]
    for name, (out, err, code) in ends.items():
        assert (out, code) == ("", 128 + numbers[name])
        assert "Traceback" not in err
        step = int(max(Path(name, "checkpoints").iterdir()).stem.removeprefix("step-"))
        assert mentions(err, f"{numbers[name].name} ... step {step}; ... checkpoint")
        resumed = vqtool(*command, *rare_logging, "--run-dir", name, "--resume")
        assert resumed.code == 0
        assert json.loads(resumed.out)["steps"] == 300


def _signal_once_logging(processes: "dict[str, subprocess.Popen[str]]", numbers: dict[str, signal.Signals]) -> None:
    waiting, end = set(processes), time.monotonic() + 60
    while waiting:
        for name in sorted(waiting):
            assert processes[name].poll() is None, processes[name].communicate()[1]
            log = Path(name, "metrics.jsonl")
            if log.exists() and log.stat().st_size > 0:
                processes[name].send_signal(numbers[name])
                waiting.remove(name)
        assert time.monotonic() < end, "nothing was logged"
        time.sleep(0.01)
