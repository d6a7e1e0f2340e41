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

# Number of steps of a run.
STEPS = 120


def saving(folder: Path, kills: int) -> Iterator[Row]:
    """Kill runs that save a checkpoint at every step, `kills` times in all, and resume them."""
    yield from _kill_runs(folder, kills, "a checkpoint every step", {"checkpoint_every": 1, "validate_every": 2})


def exact(folder: Path, kills: int) -> Iterator[Row]:
    """Kill runs over ten epochs that save a checkpoint every 7 steps, `kills` times in all, and resume them."""
    intervals = {"checkpoint_every": 7, "validate_every": 10, "log_every": 3}
    yield from _kill_runs(folder, kills, "ten epochs", intervals)


def encoding(folder: Path, kills: int) -> Iterator[Row]:
    """Kill an encode `kills` times, and run it again; each index file must equal that of an uninterrupted encode."""
    config = write_config(folder, {"steps": 5}, samples=40_000)
    train(load_config(config), folder / "run")
    tokenizer, out, rng = load(folder / "run"), folder / "tokens.npy", random.Random(0)
    encode_file(tokenizer, folder / "straight.npy")
    start = time.monotonic()
    encode_file(tokenizer, out)
    seconds, different = time.monotonic() - start, 0
    for _ in range(kills):
        if out.exists():
            different += not _equal_files(out, folder / "straight.npy")
            out.unlink()
        _kill_after(lambda: encode_file(load(folder / "run"), out), rng.uniform(0, 1.1 * seconds))
    encode_file(tokenizer, out, overwrite=out.exists())
    different += not _equal_files(out, folder / "straight.npy")
    temp_files = list(folder.glob(".*.part"))
    result = f"{different} index files differ from an uninterrupted encode; {len(temp_files)} temporary files left"
    yield Row(f"encode killed {kills} times", result, not different and not temp_files)


def parts(folder: Path, kills: int) -> Iterator[Row]:
    """Kill workers of `encode --part` `kills` times, then run all; the result must equal that of one `encode`."""
    train(load_config(write_config(folder, {"steps": 5}, samples=100_000)), folder / "run")
    encode_file(load(folder / "run"), folder / "straight.npy")
    for workers in (2, 3, 16):
        out, rng = folder / f"{workers}.npy", random.Random(workers)
        for _ in range(kills):
            part = Part(rng.randint(1, workers), workers)
            _kill_after(partial(_encode_part, folder / "run", out, part), rng.uniform(0, 0.4))
        for number in range(workers):
            _encode_part(folder / "run", out, Part(number + 1, workers))
        same = _equal_files(out, folder / "straight.npy")
        temp_files = [
            path.name for path in folder.iterdir() if path.name.startswith((f"{workers}.npy.", f".{workers}."))
        ]
        result = f"{'equal' if same else 'different'} bytes; {len(temp_files)} temporary files left"
        yield Row(f"encode by {workers} workers, {kills} kills", result, same and not temp_files)


def _encode_part(run: Path, out: Path, part: Part) -> None:
    encode_part(load(run), out, part)


def _equal_files(one: Path, other: Path) -> bool:
    """Return whether two index files and their manifests are equal to the byte."""
    return all(one.with_suffix(kind).read_bytes() == other.with_suffix(kind).read_bytes() for kind in (".npy", ".json"))


def _kill_runs(folder: Path, kills: int, kind: str, intervals: dict[str, int]) -> Iterator[Row]:
    """Kill and resume runs until `kills` kills hit a running process; compare them with an uninterrupted run.

    Args:
        kind: name of this kind of run in the table.
        intervals: keys of the training block.
    """
    settings = load_config(write_config(folder, {"steps": STEPS, **intervals}))
    train(settings, folder / "straight")
    expected, rng, seconds = results_of(folder / "straight"), random.Random(kills), run_seconds(folder, settings)
    runs, not_resumable, different, num_kills = 0, 0, 0, kills
    while kills:
        run = folder / f"run-{runs}"
        while kills and not RunDirectory(run).summary.exists():
            kills -= _kill_after(partial(train, settings, run, resume=True), rng.uniform(0, seconds / 4))
            not_resumable += not is_resumable(RunDirectory(run))
        train(settings, run, resume=True)
        different += results_of(run) != expected
        shutil.rmtree(run)
        runs += 1
    result = f"{not_resumable} times not resumable; {different} of {runs} runs differ from an uninterrupted run"
    yield Row(f"{num_kills} kills, {kind}", result, not (not_resumable or different))


def is_resumable(run: RunDirectory) -> bool:
    """Return whether a run can be resumed, and neither its model nor any checkpoint is damaged."""
    try:
        lines: list[str] = []
        load_checkpoint(run, lines.append)
        if run.model.exists():
            read_model(run.model)
    except CheckpointError:
        return False
    return not any("damaged" in line for line in lines)


def run_seconds(folder: Path, settings: Any) -> float:
    """Train in a new directory; return the seconds that it takes."""
    start = time.monotonic()
    train(settings, folder / "timed")
    return time.monotonic() - start


def _kill_after(work: Callable[[], object], seconds: float) -> bool:
    """Run `work` in a child process, and kill it after some seconds; return whether it was still running."""
    child = os.fork()
    if not child:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
        work()
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def results_of(folder: Path) -> dict[str, Any]:
    """Return the results of a run without timings: bytes of the model, training state, and both metric logs."""
    run = RunDirectory(folder)
    events = EventAccumulator(str(folder), {"scalars": 0}, purge_orphaned_data=False).Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
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


def write_config(folder: Path, training: dict[str, int], samples: int = 400) -> Path:
    """Write a config for a small run with these keys of the training block; return its path."""
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
