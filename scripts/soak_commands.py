"""Whole commands in trouble: signals, full disks, too little memory, a second process in the same place."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import yaml
from promises import Row

from vqtool.errors import VqtoolError
from vqtool.model_file import read_model
from vqtool.run import Run
from vqtool.training.checkpoint import load_checkpoint

_CONFIGS = Path(__file__).parent.parent / "configs"
_ENDED = {signal.SIGTERM: 143, signal.SIGINT: 130}
# What the estimate may be off by.
_TOLERANCE = 0.25
# Seconds in which a signal must have ended a run.
_PROMPTLY = 10


def signals(folder: Path, times: int) -> Iterator[Row]:
    """SIGTERM and SIGINT at random moments, from start-up to the end, of a run that validates and saves often."""
    config = _config(folder, steps=40, validate_every=5, checkpoint_every=3)
    _vqtool("train", "--config", config, "--run-dir", folder / "straight")
    expected, picks = Run(folder / "straight").model.read_bytes(), random.Random(0)
    began = time.monotonic()
    _vqtool("train", "--config", config, "--run-dir", folder / "timed")
    span = time.monotonic() - began
    codes, slowest, different = [], 0.0, 0
    for number in range(times):
        run = folder / f"run-{number}"
        kind = (signal.SIGTERM, signal.SIGINT)[number % 2]
        code, took = _stopped(["train", "--config", config, "--run-dir", run], kind, picks.uniform(0, span))
        codes.append("as promised" if code == _ENDED[kind] else "ended before" if code == 0 else str(code))
        slowest = max(slowest, took)
        _vqtool("train", "--config", config, "--run-dir", run, "--resume")
        different += Run(run).model.read_bytes() != expected
        shutil.rmtree(run)
    tally = ", ".join(f"{codes.count(code)} {code}" for code in dict.fromkeys(codes))
    held = {*codes} <= {"as promised", "ended before"} and slowest < _PROMPTLY and not different
    yield Row(f"{times} signals", f"{tally}; slowest {slowest:.1f} s; {different} resumed runs differ", held)


def disk(folder: Path, times: int) -> Iterator[Row]:
    """Files that may grow no further, at `times` sizes, and a folder that may not be written to."""
    config = _config(folder, steps=4, validate_every=1, checkpoint_every=1)
    run = folder / "run"
    _vqtool("train", "--config", config, "--run-dir", run)
    _vqtool("encode", run, "--out", folder / "tokens.npy")
    tokens, broken = (folder / "tokens.npy").read_bytes(), []
    largest = max(path.stat().st_size for path in run.rglob("*") if path.is_file())
    for number in range(times):
        limit = largest * (number + 1) // (times + 1)
        grown = folder / "grown"
        shutil.copytree(run, grown)
        arguments = ["train", "--config", config, "--run-dir", grown, "--resume", "--set", "training.steps=8"]
        done = _limited(arguments, limit)
        if not (_refused(done) and _intact(grown)):
            broken.append(f"train at {limit} bytes: {done.returncode} {done.stderr[-200:]}")
        shutil.rmtree(grown)
        done = _limited(
            ["encode", run, "--out", folder / "tokens.npy", "--overwrite"], len(tokens) * (number + 1) // (times + 1)
        )
        if not (_refused(done) and (folder / "tokens.npy").read_bytes() == tokens):
            broken.append(f"encode: {done.returncode} {done.stderr[-200:]}")
    figure = f"{len(broken)} not told in one line, or something not left whole {broken[:1]}"
    yield Row(f"{2 * times} files cut off", figure, not broken)


def memory(folder: Path, times: int) -> Iterator[Row]:
    """What a dry run says of each shipped recipe, beside the most that a run of it holds."""
    for recipe in sorted(_CONFIGS.glob("*.yaml"))[:times]:
        few = ["--set", "training.steps=12", "--set", "training.validate_every=6", "--set", "training.device=cpu"]
        arguments = ["train", "--config", recipe, "--run-dir", folder / recipe.stem, *few]
        planned = json.loads(_vqtool(*arguments, "--dry-run", "--json").stdout)["memory_bytes"]
        held = _peak(arguments)
        figure = f"{planned / 1e6:,.0f} MB said, {held / 1e6:,.0f} MB held"
        yield Row(f"memory of {recipe.stem}", figure, abs(planned / held - 1) < _TOLERANCE)


def twice(folder: Path, times: int) -> Iterator[Row]:
    """The same config again, with other numbers of loader threads, and two processes in one directory."""
    config, models = _config(folder, steps=60, validate_every=20), set()
    for number in range(times):
        threads = f"training.loader_threads={(1, 0, 3)[number % 3]}"
        _vqtool("train", "--config", config, "--run-dir", folder / str(number), "--set", threads)
        models.add(Run(folder / str(number)).model.read_bytes())
    yield Row(f"the same config {times} times", f"{len(models)} different models", len(models) == 1)
    first = _start(["train", "--config", config, "--run-dir", folder / "shared", "--set", "training.steps=100000"])
    while not (folder / "shared" / "metrics.jsonl").exists():
        time.sleep(0.05)
    second = _vqtool("train", "--config", config, "--run-dir", folder / "shared", "--resume", check=False)
    first.send_signal(signal.SIGTERM)
    first.wait()
    told = second.returncode == 2 and "another process is training in it" in second.stderr
    yield Row("two processes in one directory", f"the second: exit {second.returncode}", told)


def _config(folder: Path, **training: int) -> Path:
    path = folder / "config.yaml"
    blocks = {
        "data": {"kind": "synthetic", "samples": 20_000, "source": {"kind": "gaussian", "dim": 16}},
        "model": {
            "encoder": {"kind": "mlp", "width": 32, "layers": 1},
            "quantizer": {"kind": "vector", "codebook_size": 256},
        },
        "training": {"batch_size": 64, "device": "cpu", "log_every": 10, **training},
    }
    path.write_text(yaml.safe_dump(blocks))
    return path


def _command(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "vqtool", *map(str, arguments)]


def _vqtool(*arguments: object, check: bool = True) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(_command(arguments), capture_output=True, text=True, check=check)


def _start(arguments: Sequence[object]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(_command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _stopped(arguments: Sequence[object], kind: signal.Signals, seconds: float) -> tuple[int, float]:
    """The exit code of a command that is sent a signal, and how long it took from there."""
    process = _start(arguments)
    time.sleep(0.1 + seconds)  # Before that, Python itself is starting, and has its own ways.
    process.send_signal(kind)
    began = time.monotonic()
    return process.wait(), time.monotonic() - began


def _limited(arguments: Sequence[object], limit: int) -> "subprocess.CompletedProcess[str]":
    """Run a command whose files may have `limit` bytes."""
    cut = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    return subprocess.run(_command(arguments), capture_output=True, text=True, preexec_fn=cut)


def _refused(done: "subprocess.CompletedProcess[str]") -> bool:
    """Whether a command said in one line that it could not write."""
    told = [line for line in done.stderr.splitlines() if line.startswith("vqtool: ")]
    return done.returncode == 2 and len(told) == 1 and "cannot be" in told[0] and "Traceback" not in done.stderr


def _intact(folder: Path) -> bool:
    try:
        read_model(Run(folder).model)
        return load_checkpoint(Run(folder)) is not None
    except VqtoolError:
        return False


def _peak(arguments: Sequence[object]) -> int:
    """The most bytes that a command held."""
    process = _start(arguments)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, arguments
    return usage.ru_maxrss * 1024
