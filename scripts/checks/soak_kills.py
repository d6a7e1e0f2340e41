"""Checks of runs and encodes that are killed at random times and started again."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from checks.guarantees import Row
from vqtool.config import load_config
from vqtool.errors import CheckpointError
from vqtool.inference.encode import encode_file
from vqtool.inference.parts import Part, encode_part
from vqtool.inference.tokenizer import load
from vqtool.runs.checkpoint import load_checkpoint
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train

# Steps of a run.
STEPS = 120


def saving(folder: Path, kills: int) -> Iterator[Row]:
    """Kill runs that save a checkpoint at every step."""
    yield from _killed(folder, kills, "a checkpoint every step", {"checkpoint_every": 1, "validate_every": 2})


def exact(folder: Path, kills: int) -> Iterator[Row]:
    """Kill runs over ten epochs that save a checkpoint every 7 steps."""
    often = {"checkpoint_every": 7, "validate_every": 10, "log_every": 3}
    yield from _killed(folder, kills, "ten epochs", often)


def encoding(folder: Path, kills: int) -> Iterator[Row]:
    """Kill an encode and run it again."""
    config = config_of(folder, {"steps": 5}, samples=40_000)
    train(load_config(config), folder / "run")
    tokenizer, out, picks = load(folder / "run"), folder / "tokens.npy", random.Random(0)
    encode_file(tokenizer, folder / "straight.npy")
    began = time.monotonic()
    encode_file(tokenizer, out)
    span, unlike = time.monotonic() - began, 0
    for _ in range(kills):
        if out.exists():
            unlike += not _alike(out, folder / "straight.npy")
            out.unlink()
        _kill_after(lambda: encode_file(load(folder / "run"), out), picks.uniform(0, 1.1 * span))
    encode_file(tokenizer, out, overwrite=out.exists())
    unlike += not _alike(out, folder / "straight.npy")
    left = list(folder.glob(".*.part"))
    result = f"{unlike} index files differ from an uninterrupted encode; {len(left)} temporary files left"
    yield Row(f"encode killed {kills} times", result, not unlike and not left)


def parts(folder: Path, kills: int) -> Iterator[Row]:
    """Kill workers of `encode --part` and start them again."""
    train(load_config(config_of(folder, {"steps": 5}, samples=100_000)), folder / "run")
    encode_file(load(folder / "run"), folder / "straight.npy")
    for workers in (2, 3, 16):
        out, picks = folder / f"{workers}.npy", random.Random(workers)
        for _ in range(kills):
            part = Part(picks.randint(1, workers), workers)
            _kill_after(partial(_encode_part, folder / "run", out, part), picks.uniform(0, 0.4))
        for number in range(workers):
            _encode_part(folder / "run", out, Part(number + 1, workers))
        same = _alike(out, folder / "straight.npy")
        left = [path.name for path in folder.iterdir() if path.name.startswith((f"{workers}.npy.", f".{workers}."))]
        result = f"{'equal' if same else 'different'} bytes; {len(left)} temporary files left"
        yield Row(f"encode by {workers} workers, {kills} kills", result, same and not left)


def _encode_part(run: Path, out: Path, part: Part) -> None:
    encode_part(load(run), out, part)


def _alike(one: Path, other: Path) -> bool:
    """Whether two index files and their manifests are equal."""
    return all(one.with_suffix(kind).read_bytes() == other.with_suffix(kind).read_bytes() for kind in (".npy", ".json"))


def _killed(folder: Path, kills: int, kind: str, often: dict[str, int]) -> Iterator[Row]:
    settings = load_config(config_of(folder, {"steps": STEPS, **often}))
    train(settings, folder / "straight")
    expected, picks, span = outcome(folder / "straight"), random.Random(kills), span_of(folder, settings)
    runs, unfit, different, total = 0, 0, 0, kills
    while kills:
        run = folder / f"run-{runs}"
        while kills and not RunDirectory(run).summary.exists():
            kills -= _kill_after(partial(train, settings, run, resume=True), picks.uniform(0, span / 4))
            unfit += not fit(RunDirectory(run))
        train(settings, run, resume=True)
        different += outcome(run) != expected
        shutil.rmtree(run)
        runs += 1
    result = f"{unfit} times not resumable; {different} of {runs} runs differ from an uninterrupted run"
    yield Row(f"{total} kills, {kind}", result, not unfit and not different)


def fit(run: RunDirectory) -> bool:
    """Whether a run can be resumed and has no damaged file with a valid name."""
    try:
        said: list[str] = []
        load_checkpoint(run, said.append)
        if run.model.exists():
            read_model(run.model)
    except CheckpointError:
        return False
    return not any("damaged" in line for line in said)


def span_of(folder: Path, settings: Any) -> float:
    began = time.monotonic()
    train(settings, folder / "timed")
    return time.monotonic() - began


def _kill_after(work: Callable[[], object], seconds: float) -> bool:
    """Run `work` in a child process and kill it after some seconds; return whether it was still alive."""
    child = os.fork()
    if not child:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        work()
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def outcome(folder: Path) -> dict[str, Any]:
    """Return the results of a run without timings: model, training state, and each step of both logs."""
    run = RunDirectory(folder)
    board = EventAccumulator(str(folder), {"scalars": 0}, purge_orphaned_data=False).Reload()
    scalars = {tag: [(each.step, each.value) for each in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    state = load_checkpoint(run)
    assert state is not None
    numbers = {name: tensor.numpy().tobytes() for name, tensor in state.model.items()}
    moments = {
        (key, name): value.numpy().tobytes()
        for key, values in state.optimizer["state"].items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }
    return {
        "model": run.model.read_bytes(),
        "state": (numbers, moments),
        "log": [_without_speed(line) for line in run.metrics.read_text().splitlines()],
        "board": {tag: values for tag, values in scalars.items() if "throughput" not in tag},
    }


def _without_speed(line: str) -> dict[str, Any]:
    return {tag: value for tag, value in yaml.safe_load(line).items() if "throughput" not in tag}


def config_of(folder: Path, training: dict[str, int], samples: int = 400) -> Path:
    path = folder / "config.yaml"
    blocks = {
        "data": {"kind": "synthetic", "samples": samples, "source": {"kind": "gaussian", "dim": 8}},
        "model": {
            "encoder": {"kind": "mlp", "width": 16, "layers": 1},
            "quantizer": {"kind": "vector", "codebook_size": 32, "temperature_unit": "quantization_error"},
        },
        "loss": {"entropy": 0.1},
        "training": {"batch_size": 32, "device": "cpu", **training},
    }
    path.write_text(yaml.safe_dump(blocks))
    return path
