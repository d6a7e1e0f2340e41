"""Checks of jobs in which a process is killed or receives a signal."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from checks.guarantees import Row
from checks.process_cases import CASES
from checks.process_jobs import first_share, job
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory

_STEPS = 200
# Limit of the seconds until all processes have exited.
_MAX_EXIT_SECONDS = 25


def death(folder: Path, share: float) -> Iterator[Row]:
    """Kill one of three processes: the others must exit, and one process must be able to resume.

    Rarely, gloo does not wake a process that waits for a send to the killed one (`Pair::signalException` skips unbound
    buffers in `tx_`). Torchrun then kills it 30 seconds after its SIGTERM. If that happens, the check is repeated once.
    """
    for victim in first_share((2, 0), share):
        job_end = _run_and_signal(folder / f"killed-{victim}", victim, signal.SIGKILL)
        if job_end.seconds > _MAX_EXIT_SECONDS:
            job_end = _run_and_signal(folder / f"killed-{victim}-again", victim, signal.SIGKILL)
        yield Row(f"rank {victim} of 3 killed: the others exit", job_end.summary, job_end.is_clean)
        yield _resume(job_end, f"rank {victim} of 3 killed: --resume with 1 process")


def signals(folder: Path, share: float) -> Iterator[Row]:
    """Send SIGTERM to one of three processes, or to all and torchrun: all must save the same step and exit."""
    for victim in first_share((1, None, 0), share):
        job_end = _run_and_signal(folder / f"stopped-{victim}", victim, signal.SIGTERM)
        target = "3 ranks and torchrun" if victim is None else f"rank {victim} of 3"
        saved = job_end.run.checkpoint_files()
        result = f"{job_end.summary}, {max(saved).stem if saved else 'nothing'} saved"
        yield Row(f"SIGTERM to {target}: all exit", result, job_end.is_clean)
        yield _resume(job_end, f"SIGTERM to {target}: --resume with 1 process")


def init_from(folder: Path, share: float) -> Iterator[Row]:
    """Compare one and two processes that start from another run's model, saved within a dead-code window."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(CASES["ema, random init"]))
    runs = {size: RunDirectory(folder / f"run-{size}") for size in (0, 1, 2)}
    for size, change in ((0, "steps=7"), (1, f"init_from={runs[0].folder}"), (2, f"init_from={runs[0].folder}")):
        command = [*job(max(1, size)), "-m", "vqtool", *_train(config, runs[size]), "--set", f"training.{change}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    one, two = (read_model(runs[size].model)[0].state for size in (1, 2))
    difference = max(float((one[name].double() - two[name].double()).abs().max()) for name in one)
    result = f"largest difference {difference:.1e} (limit 1e-4)"
    yield Row("training.init_from with 1 and 2 processes, float32", result, difference <= 1e-4)


class JobEnd(NamedTuple):
    """How a job of three processes ended after a signal."""

    run: RunDirectory
    config: Path
    seconds: float
    """From the signal to the exit of the last process."""
    has_message: bool
    """Whether standard error has the expected reason."""

    @property
    def is_clean(self) -> bool:
        """Whether all processes exited in time, with a message."""
        return self.seconds <= _MAX_EXIT_SECONDS and self.has_message

    @property
    def summary(self) -> str:
        """Seconds, their limit, and whether the message is missing."""
        missing = "" if self.has_message else ", without a message"
        return f"after {self.seconds:.1f} s (limit {_MAX_EXIT_SECONDS} s){missing}"


def _run_and_signal(folder: Path, victim: int | None, number: signal.Signals) -> JobEnd:
    """Train in three processes; after the second checkpoint, send a signal to the rank `victim`, and wait for the end.

    If `victim` is None, all ranks and then torchrun receive the signal.
    """
    folder.mkdir()
    config, run = folder / "config.yaml", RunDirectory(folder / "run")
    config.write_text(yaml.safe_dump(_with_intervals(CASES["ema"])))
    log = folder / "stderr.txt"
    with log.open("w") as file:
        launcher = subprocess.Popen(
            [*job(3), "-m", "vqtool", *_train(config, run)], stderr=file, start_new_session=True
        )
        while not len(list(run.checkpoints.glob("*.json"))) >= 2:
            time.sleep(0.05)
            assert launcher.poll() is None, log.read_text()
        workers = _worker_pids(launcher.pid)
        signal_time = time.monotonic()
        for pid in workers if victim is None else [workers[victim]]:
            os.kill(pid, number)
        if victim is None:
            launcher.send_signal(number)
        launcher.wait(timeout=10 * _MAX_EXIT_SECONDS)
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            time.sleep(0.05)
    expected = "another process of the job" if number == signal.SIGKILL else "stopped by SIGTERM after step"
    return JobEnd(run, config, time.monotonic() - signal_time, expected in log.read_text())


def _resume(job_end: JobEnd, check: str) -> Row:
    """Resume with one process. The guarantee holds if that succeeds and each logged step is in the log once."""
    command = [sys.executable, "-m", "vqtool", *_train(job_end.config, job_end.run), "--resume"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    steps = [fields["step"] for fields in job_end.run.read_metrics()]
    held = completed.returncode == 0 and steps == list(range(10, _STEPS + 1, 10))
    distinct = len(set(steps))
    exit_code, logged_steps = completed.returncode, _STEPS // 10
    result = f"exit code {exit_code}, {distinct} of {logged_steps} steps logged, {len(steps) - distinct} repeated"
    return Row(check, result, held)


def _train(config: Path, run: RunDirectory) -> list[str]:
    return ["train", "--config", str(config), "--run-dir", str(run.folder)]


def _with_intervals(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the config with `_STEPS` steps, and intervals for them."""
    every = {"log_every": 10, "validate_every": 50, "checkpoint_every": 20}
    return {**settings, "training": {**settings["training"], "steps": _STEPS, **every}}


def _worker_pids(launcher: int) -> list[int]:
    """Return the process ids of the ranks of a job, in rank order, given that of torchrun."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks = {}
    for child in children:
        for line in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            if line.startswith(b"RANK="):
                ranks[int(line[5:])] = int(child)
    return [ranks[rank] for rank in sorted(ranks)]
