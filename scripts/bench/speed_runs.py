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
        whole, bare = [], []
        for _ in range(turns):
            bare.append(_bare_loop(settings))
            whole.append(_whole_loop(settings))
        yield compare_timings(f"train, {name}.yaml, {steps} steps", whole, "bare loop", bare)


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


def _whole_loop(settings: RunSettings) -> float:
    """Return the seconds of a run, without opening its data."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        set_up(settings)
        opening = time.perf_counter() - start
        start = time.perf_counter()
        train(settings, Path(folder) / "run")
        return time.perf_counter() - start - opening


def encode(turns: int) -> Iterator[Measurement]:
    """Time the command `vqtool encode` on a file, and encoder and search only on rows in memory; measure its memory.

    With an MLP, where reading and hashing weigh most, and with convolutions on a smaller file.
    """
    grown = []
    for recipe, row, gigabytes, times in (("vectors", (256,), 4, max(1, turns // 2)), ("images", (3, 32, 32), 1, 1)):
        whole, parts, memory = _encode(recipe, row, gigabytes << 30, times)
        grown.append(memory)
        case = f"encode of {gigabytes} GiB, {recipe}.yaml"
        yield compare_timings(case, whole, "encoder and search only, in memory", [_PARTS * taken for taken in parts])
    yield Measurement("encode, growth of RssAnon", f"{max(grown):.0f} MiB")


# One in this many rows is encoded in memory.
_PARTS = 8


def _encode(recipe: str, row: tuple[int, ...], size: int, times: int) -> tuple[list[float], list[float], float]:
    """Return the seconds of the command, the seconds of a part in memory, and the largest memory growth in MiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, run, out = folder / "data.npy", folder / "run", folder / "tokens.npy"
        rows = size // (4 * math.prod(row))
        _write(data, (rows, *row))
        _train(recipe, run, data, folder / "few.npy")
        tokenizer = load(run)
        part = torch.from_numpy(np.load(data, mmap_mode="r")[: rows // _PARTS].copy())

        whole, parts, grown = [], [], []
        for turn in range(times):
            os.environ["XDG_CACHE_HOME"] = str(folder / f"cache-{turn}")  # so that the file is scanned again
            parts += time_alternately({"alone": lambda: tokenizer.encode_batch(part)}, 1)["alone"]
            taken, memory = _watched([executable, "-m", "vqtool", "encode", run, data, "--out", out, "--overwrite"])
            whole.append(taken)
            grown.append(memory)
        return whole, parts, max(grown)


def _write(path: Path, shape: tuple[int, ...]) -> None:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    count = (1 << 22) // math.prod(shape[1:])
    block = np.random.default_rng(0).standard_normal((count, *shape[1:]), dtype=np.float32)
    for start in range(0, len(array), count):
        array[start : start + count] = block[: len(array) - start] + np.float32(start / len(array))
    array.flush()


def _train(recipe: str, run: Path, data: Path, few: Path) -> None:
    np.save(few, np.load(data, mmap_mode="r")[:10_000])
    changes = ["data.kind=tensors", f"data.path={few}", "training.steps=100", "model.quantizer.codebook_size=1024"]
    train(load_config(CONFIGS / f"{recipe}.yaml", changes), run)


def _watched(command: list[object]) -> tuple[float, float]:
    """Return the seconds of a command, and the growth of its anonymous memory in MiB after all imports."""
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    readings = []
    while process.poll() is None:
        readings.append(anonymous(process.pid))
        time.sleep(0.1)
    taken = time.perf_counter() - start
    assert process.returncode == 0, command
    return taken, max(readings) - _anonymous_once_loaded()


def anonymous(pid: int) -> float:
    """Return the anonymous memory of a process in MiB."""
    try:
        return _anonymous(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0


def _anonymous(status: str) -> float:
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
        taken = time_alternately(
            {name: partial(subprocess.run, line, check=True, stdout=quiet) for name, line in commands.items()},
            2 * turns,
        )
    yield Measurement("vqtool --help", format_spread(taken["help"]))
    yield compare_timings("vqtool inspect RUN", taken["inspect"], 'python -c "import torch"', taken["torch"])
