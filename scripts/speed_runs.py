"""The training loop, encoding a large file, and starting up, beside the same work without vqtool around it."""

import math
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from sys import executable

import numpy as np
import torch
from torch import nn
from turns import Figure, faster, seconds, spread

from vqtool import load
from vqtool.config import RunSettings, load_config
from vqtool.losses import reconstruction_loss
from vqtool.training import train
from vqtool.training.prepare import deterministic, prepare

CONFIGS = Path(__file__).parent.parent / "configs"
MIB = 1 << 20


def loop(turns: int) -> Iterator[Figure]:
    """Samples a second of `vqtool train`, its logs and checkpoints with it, and of a bare loop.

    Codes start at random in both: k-means takes seconds once, whatever the loop around it.
    """
    for name, steps in (("quickstart", 200), ("vectors", 2000)):
        changes = [f"training.validate_every={steps}", "data.validation=0.01", "model.quantizer.start={kind: random}"]
        settings = load_config(CONFIGS / f"{name}.yaml", [f"training.steps={steps}", *changes])
        whole, bare = [], []
        for _ in range(turns):
            bare.append(_bare_loop(settings))
            whole.append(_whole_loop(settings))
        yield faster(f"{name}.yaml, {steps} steps: bare loop", whole, bare, 0.95)


def _bare_loop(settings: RunSettings) -> float:
    """Seconds of forward, backward and update alone, on batches already in memory."""
    prepared = prepare(settings)
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
    """Seconds of a run but for opening its data."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        prepare(settings)
        opening = time.perf_counter() - start
        start = time.perf_counter()
        train(settings, Path(folder) / "run")
        return time.perf_counter() - start - opening


def encode(turns: int) -> Iterator[Figure]:
    """`vqtool encode` of a file, process and all; encoder and search alone, on rows in memory; the memory it takes.

    By a perceptron, which leaves little to hide other work behind, and of fewer bytes by convolutions.
    """
    grown = []
    for recipe, row, gigabytes, times in (("vectors", (256,), 4, max(1, turns // 2)), ("images", (3, 32, 32), 1, 1)):
        whole, parts, memory = _encode(recipe, row, gigabytes << 30, times)
        grown.append(memory)
        what = f"encode of {gigabytes} GiB by {recipe}.yaml: in memory"
        yield faster(what, whole, [_PARTS * taken for taken in parts], 0.9)
    most = max(grown)
    yield Figure("encode: growth of RssAnon", f"{most:.0f} MiB", "", float("nan"), "under 300 MB", most * MIB < 3e8)


# Of the rows, one in so many is encoded in memory.
_PARTS = 8


def _encode(recipe: str, row: tuple[int, ...], size: int, times: int) -> tuple[list[float], list[float], float]:
    """Seconds of the command, seconds of a part in memory, and the most that memory grew by, in MiB."""
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
            os.environ["XDG_CACHE_HOME"] = str(folder / f"cache-{turn}")  # so that the file is looked over anew
            parts += seconds({"alone": lambda: tokenizer.encode_samples(part)}, 1)["alone"]
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
    """Seconds of a command, and by how many MiB its anonymous memory grew once all was imported."""
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
    """MiB of a process that are in no file."""
    try:
        return _anonymous(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0


def _anonymous(status: str) -> float:
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon:")), 0.0)


def _anonymous_once_loaded() -> float:
    """MiB of a process that has imported what encode imports, and has done nothing yet."""
    code = "import vqtool.transcode; print(open('/proc/self/status').read())"
    return _anonymous(subprocess.check_output([executable, "-c", code], text=True))


def start(turns: int) -> Iterator[Figure]:
    """Seconds until a command has said what it has to say."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        train(load_config(CONFIGS / "quickstart.yaml", ["training.steps=20"]), run)
        commands = {
            "help": [executable, "-m", "vqtool", "--help"],
            "inspect": [executable, "-m", "vqtool", "inspect", str(run)],
            "torch": [executable, "-c", "import torch"],
        }
        quiet = subprocess.DEVNULL
        taken = seconds(
            {name: partial(subprocess.run, line, check=True, stdout=quiet) for name, line in commands.items()},
            2 * turns,
        )
    nothing = float("nan")
    yield Figure("vqtool --help", spread(taken["help"]), "", nothing, "under 0.3 s", median(taken["help"]) < 0.3)
    more = median(taken["inspect"]) - median(taken["torch"])
    what = "vqtool inspect RUN; importing torch"
    yield Figure(what, spread(taken["inspect"]), spread(taken["torch"]), nothing, "under 1 s more", more < 1)
