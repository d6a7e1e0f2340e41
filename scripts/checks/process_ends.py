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
_PATIENCE = 25


def death(folder: Path, share: float) -> Iterator[Row]:
    """Kill one of three processes: the others must exit, and one process must be able to resume.

    Rarely, gloo does not wake a process that waits for a send to the killed one (`Pair::signalException` skips unbound
    buffers in `tx_`). Torchrun then kills it 30 seconds after its SIGTERM. If that happens, the check is repeated once.
    """
    for victim in first_share((2, 0), share):
        ended = _ended(folder / f"killed-{victim}", victim, signal.SIGKILL)
        if ended.seconds > _PATIENCE:
            ended = _ended(folder / f"killed-{victim}-again", victim, signal.SIGKILL)
        held = ended.seconds <= _PATIENCE and ended.said
        yield Row(f"rank {victim} of 3 killed: the others exit", ended.told, held)
        yield _resumed(ended, f"rank {victim} of 3 killed: --resume with 1 process")


def signals(folder: Path, share: float) -> Iterator[Row]:
    """Send SIGTERM to one of three processes, or to all and torchrun: all must save the same step and exit."""
    for victim in first_share((1, None, 0), share):
        ended = _ended(folder / f"stopped-{victim}", victim, signal.SIGTERM)
        target = "3 ranks and torchrun" if victim is None else f"rank {victim} of 3"
        saved = ended.run.checkpoint_files()
        result = f"{ended.told}, {max(saved).stem if saved else 'nothing'} saved"
        yield Row(f"SIGTERM to {target}: all exit", result, ended.seconds <= _PATIENCE and ended.said)
        yield _resumed(ended, f"SIGTERM to {target}: --resume with 1 process")


def init_from(folder: Path, share: float) -> Iterator[Row]:
    """Compare one and two processes that start from another run's model, saved within a dead-code window."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(CASES["ema, random init"]))
    runs = {size: RunDirectory(folder / f"run-{size}") for size in (0, 1, 2)}
    for size, change in ((0, "steps=7"), (1, f"init_from={runs[0].folder}"), (2, f"init_from={runs[0].folder}")):
        command = [*job(max(1, size)), "-m", "vqtool", *_train(config, runs[size]), "--set", f"training.{change}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    one, two = (read_model(runs[size].model)[0].state for size in (1, 2))
    apart = max(float((one[name].double() - two[name].double()).abs().max()) for name in one)
    result = f"largest difference {apart:.1e} (limit 1e-4)"
    yield Row("training.init_from with 1 and 2 processes, float32", result, apart <= 1e-4)


class Ended(NamedTuple):
    """How a job ended."""

    run: RunDirectory
    config: Path
    seconds: float
    """From the signal to the exit of the last process."""
    said: bool
    """Whether the reason was reported."""

    @property
    def told(self) -> str:
        """The result as text."""
        return f"after {self.seconds:.1f} s (limit {_PATIENCE} s){'' if self.said else ', without a message'}"


def _ended(folder: Path, victim: int | None, number: signal.Signals) -> Ended:
    """Run a job of three processes and send a signal to a rank; None: to all ranks and then to torchrun."""
    folder.mkdir()
    config, run = folder / "config.yaml", RunDirectory(folder / "run")
    config.write_text(yaml.safe_dump(_long(CASES["ema"])))
    with (folder / "said.txt").open("w") as said:
        running = subprocess.Popen([*job(3), "-m", "vqtool", *_train(config, run)], stderr=said, start_new_session=True)
        while not len(list(run.checkpoints.glob("*.json"))) >= 2:
            time.sleep(0.05)
            assert running.poll() is None, (folder / "said.txt").read_text()
        processes = _workers(running.pid)
        begun = time.monotonic()
        for process in processes if victim is None else [processes[victim]]:
            os.kill(process, number)
        if victim is None:
            running.send_signal(number)
        running.wait(timeout=10 * _PATIENCE)
        while any(Path(f"/proc/{process}").exists() for process in processes):
            time.sleep(0.05)
    words = (folder / "said.txt").read_text()
    expected = "another process of the job" if number == signal.SIGKILL else "stopped by SIGTERM after step"
    return Ended(run, config, time.monotonic() - begun, expected in words)


def _resumed(ended: Ended, check: str) -> Row:
    command = [sys.executable, "-m", "vqtool", *_train(ended.config, ended.run), "--resume"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    steps = [fields["step"] for fields in ended.run.read_metrics()]
    held = done.returncode == 0 and steps == list(range(10, _STEPS + 1, 10))
    distinct = len(set(steps))
    result = f"exit code {done.returncode}, {distinct} of {_STEPS // 10} steps logged, {len(steps) - distinct} repeated"
    return Row(check, result, held)


def _train(config: Path, run: RunDirectory) -> list[str]:
    return ["train", "--config", str(config), "--run-dir", str(run.folder)]


def _long(settings: dict[str, Any]) -> dict[str, Any]:
    every = {"log_every": 10, "validate_every": 50, "checkpoint_every": 20}
    return {**settings, "training": {**settings["training"], "steps": _STEPS, **every}}


def _workers(launcher: int) -> list[int]:
    """Return the process ids of a job, by rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks = {}
    for child in children:
        for line in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            if line.startswith(b"RANK="):
                ranks[int(line[5:])] = int(child)
    return [ranks[rank] for rank in sorted(ranks)]
