"""Overhead of training loop, `vqtool encode` and start-up, beside the same work without vqtool."""

import math
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from sys import executable

import numpy as np
import torch
from torch import nn

from bench.timing import Measurement, compare_timings, format_spread, time_alternately
from vqtool import load
from vqtool.config import RunSettings, load_config
from vqtool.models.losses import reconstruction_loss
from vqtool.training import train
from vqtool.training.setup import deterministic, set_up

CONFIGS = Path(__file__).parents[2] / "configs"


def loop(turns: int) -> Iterator[Measurement]:
    """Time `vqtool train` with its logs and checkpoints, and a bare loop.

    Both use `init: random`, because k-means takes a fixed time of some seconds.
    """
    for name, steps in (("quickstart", 200), ("vectors", 2000)):
        changes = [f"training.validate_every={steps}", "data.validation=0.01", "model.quantizer.init={kind: random}"]
        settings = load_config(CONFIGS / f"{name}.yaml", [f"training.steps={steps}", *changes])
        full_runs, bare_loops = [], []
        for _ in range(turns):
            bare_loops.append(_bare_loop(settings))
            full_runs.append(_full_run(settings))
        yield compare_timings(f"train, {name}.yaml, {steps} steps", full_runs, "bare loop", bare_loops)


def _bare_loop(settings: RunSettings) -> float:
    """Return the seconds of forward, backward and update only, on batches in memory."""
    prepared = set_up(settings)
    model, training, loss = prepared.model, prepared.settings.training, prepared.settings.loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, fused=True)
    batches = prepared.dataset.training.read(0, 8 * training.batch_size).split(training.batch_size)
    with deterministic():
        start = time.perf_counter()
        for step in range(training.steps):
            output = model(batches[step % len(batches)])
            total = reconstruction_loss(loss.reconstruction, output.prediction, output.target)
            total = total + loss.commitment * output.quantizer.commitment_loss
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            if training.gradient_clip:
                nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip)
            optimizer.step()
            model.quantizer.update()
        return time.perf_counter() - start


def _full_run(settings: RunSettings) -> float:
    """Return the seconds of `train`, minus those of `set_up`."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        set_up(settings)
        setup_seconds = time.perf_counter() - start
        start = time.perf_counter()
        train(settings, Path(folder) / "run")
        return time.perf_counter() - start - setup_seconds


def encode(turns: int) -> Iterator[Measurement]:
    """Time the command `vqtool encode` on a file, and encoder and search only on rows in memory; measure its memory.

    With an MLP, where reading and hashing weigh most, and with convolutions on a smaller file.
    """
    growths = []
    for recipe, row, gigabytes, times in (("vectors", (256,), 4, max(1, turns // 2)), ("images", (3, 32, 32), 1, 1)):
        command, in_memory, growth = _encode(recipe, row, gigabytes << 30, times)
        growths.append(growth)
        case = f"encode of {gigabytes} GiB, {recipe}.yaml"
        yield compare_timings(case, command, "encoder and search only, in memory", in_memory)
    yield Measurement("encode, growth of RssAnon", f"{max(growths):.0f} MiB")


# In memory, only the first rows are encoded, one in this many; the time is multiplied by it.
_SUBSET_DIVISOR = 8


def _encode(recipe: str, row: tuple[int, ...], size: int, times: int) -> tuple[list[float], list[float], float]:
    """Train a recipe, and encode a file of `size` bytes with rows (C, ...) of shape `row`, `times` times.

    Returns:
        Seconds of the command each time; seconds in memory each time, for the same number of rows; largest growth of
        the command's memory in MiB.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, run, out = folder / "data.npy", folder / "run", folder / "tokens.npy"
        rows = size // (4 * math.prod(row))
        _write(data, (rows, *row))
        _train(recipe, run, data, folder / "few.npy")
        tokenizer = load(run)
        subset = torch.from_numpy(np.load(data, mmap_mode="r")[: rows // _SUBSET_DIVISOR].copy())

        command, in_memory, growths = [], [], []
        for turn in range(times):
            os.environ["XDG_CACHE_HOME"] = str(folder / f"cache-{turn}")  # so that the file is scanned again
            (seconds,) = time_alternately({"subset": lambda: tokenizer.encode_batch(subset)}, 1)["subset"]
            in_memory.append(_SUBSET_DIVISOR * seconds)
            seconds, growth = _run_and_watch(
                [executable, "-m", "vqtool", "encode", run, data, "--out", out, "--overwrite"]
            )
            command.append(seconds)
            growths.append(growth)
        return command, in_memory, max(growths)


def _write(path: Path, shape: tuple[int, ...]) -> None:
    """Write an array of normal values, in blocks of 16 MiB; each block is the first one plus a constant."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    count = (1 << 22) // math.prod(shape[1:])
    block = np.random.default_rng(0).standard_normal((count, *shape[1:]), dtype=np.float32)
    for start in range(0, len(array), count):
        array[start : start + count] = block[: len(array) - start] + np.float32(start / len(array))
    array.flush()


def _train(recipe: str, run: Path, data: Path, training_data: Path) -> None:
    """Write the first 10,000 rows of `data` to `training_data`, and train a recipe on them for 100 steps."""
    np.save(training_data, np.load(data, mmap_mode="r")[:10_000])
    changes = [
        "data.kind=tensors",
        f"data.path={training_data}",
        "training.steps=100",
        "model.quantizer.codebook_size=1024",
    ]
    train(load_config(CONFIGS / f"{recipe}.yaml", changes), run)


def _run_and_watch(command: list[object]) -> tuple[float, float]:
    """Run a command; return its seconds, and its peak anonymous memory above that after its imports, in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    readings = []
    while process.poll() is None:
        readings.append(_anonymous_of(process.pid))
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    assert process.returncode == 0, command
    return seconds, max(readings) - _anonymous_once_loaded()


def _anonymous_of(pid: int) -> float:
    """Return the anonymous memory of a process in MiB; 0 if it has ended."""
    try:
        return _anonymous(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0


def _anonymous(status: str) -> float:
    """Return the anonymous memory in MiB from the text of /proc/PID/status; 0 if it is not in there."""
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon:")), 0.0)


def _anonymous_once_loaded() -> float:
    """Return the anonymous memory in MiB of a process that has only imported what encode imports."""
    code = "import vqtool.inference.encode; print(open('/proc/self/status').read())"
    return _anonymous(subprocess.check_output([executable, "-c", code], text=True))


def start(turns: int) -> Iterator[Measurement]:
    """Time short commands, from start to exit."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        train(load_config(CONFIGS / "quickstart.yaml", ["training.steps=20"]), run)
        commands = {
            "help": [executable, "-m", "vqtool", "--help"],
            "inspect": [executable, "-m", "vqtool", "inspect", str(run)],
            "torch": [executable, "-c", "import torch"],
        }
        quiet = subprocess.DEVNULL
        seconds = time_alternately(
            {name: partial(subprocess.run, line, check=True, stdout=quiet) for name, line in commands.items()},
            2 * turns,
        )
    yield Measurement("vqtool --help", format_spread(seconds["help"]))
    yield compare_timings("vqtool inspect RUN", seconds["inspect"], 'python -c "import torch"', seconds["torch"])
