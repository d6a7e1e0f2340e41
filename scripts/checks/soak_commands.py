"""Checks of whole commands: signals, full disks, the memory estimate, repeated and concurrent runs."""

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

from checks.guarantees import Row
from vqtool.errors import VqtoolError
from vqtool.runs.checkpoint import load_checkpoint
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory

_CONFIGS = Path(__file__).parents[2] / "configs"
# Exit code of a command that a signal stops.
_EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
# Limit of the relative error of the memory estimate.
_TOLERANCE = 0.25
# Limit of the seconds from a signal to the end of the command.
_MAX_STOP_SECONDS = 10
# Result of a command that ended before its signal.
_DONE = "had already finished"


def signals(folder: Path, times: int) -> Iterator[Row]:
    """Send SIGTERM or SIGINT at random times, from start-up to the end, to runs that validate and save often.

    Each must exit with 143 or 130 within the limit; resumed, it must give the model of an uninterrupted run.
    """
    config = _config(folder, steps=40, validate_every=5, checkpoint_every=3)
    _vqtool("train", "--config", config, "--run-dir", folder / "straight")
    expected, rng = RunDirectory(folder / "straight").model.read_bytes(), random.Random(0)
    began = time.monotonic()
    _vqtool("train", "--config", config, "--run-dir", folder / "timed")
    run_seconds = time.monotonic() - began
    codes, slowest, different = [], 0.0, 0
    for number in range(times):
        run = folder / f"run-{number}"
        kind = (signal.SIGTERM, signal.SIGINT)[number % 2]
        code, seconds = _stop_after(["train", "--config", config, "--run-dir", run], kind, rng.uniform(0, run_seconds))
        codes.append(
            "exited with 143 or 130" if code == _EXIT_CODES[kind] else _DONE if code == 0 else f"exited with {code}"
        )
        slowest = max(slowest, seconds)
        _vqtool("train", "--config", config, "--run-dir", run, "--resume")
        different += RunDirectory(run).model.read_bytes() != expected
        shutil.rmtree(run)
    exit_counts = ", ".join(f"{codes.count(code)} {code}" for code in dict.fromkeys(codes))
    held = {*codes} <= {"exited with 143 or 130", _DONE} and slowest < _MAX_STOP_SECONDS and not different
    result = f"{exit_counts}; slowest {slowest:.1f} s (limit {_MAX_STOP_SECONDS} s); {different} resumed runs differ"
    yield Row(f"{times} signals", result, held)


def disk(folder: Path, times: int) -> Iterator[Row]:
    """Limit the size of the files that `train --resume` and `encode --overwrite` may write, at `times` sizes each.

    Each must fail with a one-line error, and leave a loadable run or an unchanged index file.
    """
    config = _config(folder, steps=4, validate_every=1, checkpoint_every=1)
    run = folder / "run"
    _vqtool("train", "--config", config, "--run-dir", run)
    _vqtool("encode", run, "--out", folder / "tokens.npy")
    tokens, broken = (folder / "tokens.npy").read_bytes(), []
    largest = max(path.stat().st_size for path in run.rglob("*") if path.is_file())
    for number in range(times):
        limit = largest * (number + 1) // (times + 1)
        copy = folder / "grown"
        shutil.copytree(run, copy)
        arguments = ["train", "--config", config, "--run-dir", copy, "--resume", "--set", "training.steps=8"]
        completed = _run_with_file_limit(arguments, limit)
        if not (_is_refused(completed) and _is_intact(copy)):
            broken.append(f"train at {limit} bytes: {completed.returncode} {completed.stderr[-200:]}")
        shutil.rmtree(copy)
        completed = _run_with_file_limit(
            ["encode", run, "--out", folder / "tokens.npy", "--overwrite"], len(tokens) * (number + 1) // (times + 1)
        )
        if not (_is_refused(completed) and (folder / "tokens.npy").read_bytes() == tokens):
            broken.append(f"encode: {completed.returncode} {completed.stderr[-200:]}")
    result = f"{len(broken)} without a one-line error or with damaged files"
    yield Row(f"{2 * times} commands with limited file size", "; first: ".join([result, *broken[:1]]), not broken)


def memory(folder: Path, times: int) -> Iterator[Row]:
    """Compare the memory estimate of --dry-run with the peak of a run, for the first `times` recipes by name."""
    for recipe in sorted(_CONFIGS.glob("*.yaml"))[:times]:
        changes = ["--set", "training.steps=12", "--set", "training.validate_every=6", "--set", "training.device=cpu"]
        arguments = ["train", "--config", recipe, "--run-dir", folder / recipe.stem, *changes]
        estimate = json.loads(_vqtool(*arguments, "--dry-run", "--json").stdout)["memory_bytes"]
        peak = _peak(arguments)
        result = f"estimate {estimate / 1e6:,.0f} MB, peak {peak / 1e6:,.0f} MB (limit {_TOLERANCE:.0%} apart)"
        yield Row(f"memory of {recipe.stem}.yaml", result, abs(estimate / peak - 1) < _TOLERANCE)


def twice(folder: Path, times: int) -> Iterator[Row]:
    """Train a config `times` times with different numbers of loader threads; all models must be equal.

    Then start a second process in the directory of a running one; it must be refused.
    """
    config, model_files = _config(folder, steps=60, validate_every=20), set()
    for number in range(times):
        threads = f"training.loader_threads={(1, 0, 3)[number % 3]}"
        _vqtool("train", "--config", config, "--run-dir", folder / str(number), "--set", threads)
        model_files.add(RunDirectory(folder / str(number)).model.read_bytes())
    yield Row(
        f"the same config {times} times", f"{len(model_files)} distinct model files (limit 1)", len(model_files) == 1
    )
    first = _start(["train", "--config", config, "--run-dir", folder / "shared", "--set", "training.steps=100000"])
    while not (folder / "shared" / "metrics.jsonl").exists():
        time.sleep(0.05)
    second = _vqtool("train", "--config", config, "--run-dir", folder / "shared", "--resume", check=False)
    first.send_signal(signal.SIGTERM)
    first.wait()
    is_refused = second.returncode == 2 and "another process is training in this directory" in second.stderr
    yield Row("two processes in one run directory", f"the second exited with {second.returncode}", is_refused)


def _config(folder: Path, **training: int) -> Path:
    """Write a config for a small run with these keys of the training block; return its path."""
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
    """Run a vqtool command to its end; with `check`, raise CalledProcessError if it fails."""
    return subprocess.run(_command(arguments), capture_output=True, text=True, check=check)


def _start(arguments: Sequence[object]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(_command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _stop_after(arguments: Sequence[object], kind: signal.Signals, seconds: float) -> tuple[int, float]:
    """Send a signal to a command after some seconds; return its exit code and the seconds until its exit."""
    process = _start(arguments)
    time.sleep(0.1 + seconds)  # earlier signals reach Python before vqtool runs
    process.send_signal(kind)
    began = time.monotonic()
    return process.wait(), time.monotonic() - began


def _run_with_file_limit(arguments: Sequence[object], limit: int) -> "subprocess.CompletedProcess[str]":
    """Run a command that may write files of at most `limit` bytes."""
    limit_file_size = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    return subprocess.run(_command(arguments), capture_output=True, text=True, preexec_fn=limit_file_size)


def _is_refused(completed: "subprocess.CompletedProcess[str]") -> bool:
    """Return whether a command failed with exit code 2 and one line that says what it could not write."""
    errors = [line for line in completed.stderr.splitlines() if line.startswith("vqtool: ")]
    has_one_error = len(errors) == 1 and "cannot be" in errors[0] and "Traceback" not in completed.stderr
    return completed.returncode == 2 and has_one_error


def _is_intact(folder: Path) -> bool:
    """Return whether model and checkpoint of a run can be loaded."""
    try:
        read_model(RunDirectory(folder).model)
        return load_checkpoint(RunDirectory(folder)) is not None
    except VqtoolError:
        return False


def _peak(arguments: Sequence[object]) -> int:
    """Run a command; return its peak resident memory in bytes."""
    process = _start(arguments)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, arguments
    return usage.ru_maxrss * 1024
