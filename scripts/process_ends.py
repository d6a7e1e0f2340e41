"""Jobs that end before their time: a process killed, a process asked to stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from process_cases import CASES
from process_jobs import Row, job, part_of

from vqtool.run import Run

_STEPS = 200
# How long all processes may take to end.
_PATIENCE = 30


def death(folder: Path, share: float) -> Iterator[Row]:
    """SIGKILL to one of three: the others end, and one process alone goes on."""
    for victim in part_of((2, 0), share):
        ended = _ended(folder / f"killed-{victim}", victim, signal.SIGKILL)
        yield Row(f"rank {victim} of 3 killed: others end", ended.told, ended.seconds <= _PATIENCE and ended.said)
        yield _gone_on(ended, f"rank {victim} of 3 killed: --resume on 1 process")


def signal_to_one(folder: Path, share: float) -> Iterator[Row]:
    """SIGTERM to one of three: all stop after the same step, saved, and one process alone goes on."""
    for victim in part_of((1, 0), share):
        ended = _ended(folder / f"stopped-{victim}", victim, signal.SIGTERM)
        saved = ended.run.checkpoint_files()
        figure = f"{ended.told}, {max(saved).stem if saved else 'nothing'} saved"
        yield Row(f"SIGTERM to rank {victim} of 3: all stop", figure, ended.seconds <= _PATIENCE and ended.said)
        yield _gone_on(ended, f"SIGTERM to rank {victim} of 3: --resume on 1 process")


class Ended(NamedTuple):
    """How a job ended."""

    run: Run
    config: Path
    seconds: float
    """From the signal until the last process was gone."""
    said: bool
    """Whether it was said why."""

    @property
    def told(self) -> str:
        """In words."""
        return f"after {self.seconds:.1f} s{'' if self.said else ', without a word'}"


def _ended(folder: Path, victim: int, number: signal.Signals) -> Ended:
    folder.mkdir()
    config, run = folder / "config.yaml", Run(folder / "run")
    config.write_text(yaml.safe_dump(_long(CASES["ema"])))
    with (folder / "said.txt").open("w") as said:
        running = subprocess.Popen([*job(3), "-m", "vqtool", *_train(config, run)], stderr=said, start_new_session=True)
        while not len(list(run.checkpoints.glob("*.json"))) >= 2:
            time.sleep(0.05)
            assert running.poll() is None, (folder / "said.txt").read_text()
        processes = _workers(running.pid)
        begun = time.monotonic()
        os.kill(processes[victim], number)
        running.wait(timeout=10 * _PATIENCE)
        while any(Path(f"/proc/{process}").exists() for process in processes):
            time.sleep(0.05)
    words = (folder / "said.txt").read_text()
    expected = "another process of the job has ended" if number == signal.SIGKILL else "stopped by SIGTERM after step"
    return Ended(run, config, time.monotonic() - begun, expected in words)


def _gone_on(ended: Ended, what: str) -> Row:
    command = [sys.executable, "-m", "vqtool", *_train(ended.config, ended.run), "--resume"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    steps = [fields["step"] for fields in ended.run.logged()]
    held = done.returncode == 0 and steps == list(range(10, _STEPS + 1, 10))
    return Row(what, f"exit {done.returncode}, {len(steps)} of {_STEPS // 10} steps logged, each once", held)


def _train(config: Path, run: Run) -> list[str]:
    return ["train", "--config", str(config), "--run-dir", str(run.folder)]


def _long(settings: dict[str, Any]) -> dict[str, Any]:
    every = {"log_every": 10, "validate_every": 50, "checkpoint_every": 20}
    return {**settings, "training": {**settings["training"], "steps": _STEPS, **every}}


def _workers(launcher: int) -> list[int]:
    """The processes of a job by rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks = {}
    for child in children:
        for line in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            if line.startswith(b"RANK="):
                ranks[int(line[5:])] = int(child)
    return [ranks[rank] for rank in sorted(ranks)]
