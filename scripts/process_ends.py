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
from process_jobs import job, part_of
from promises import Row

from vqtool.model_file import read_model
from vqtool.run import Run

_STEPS = 200
# How long all processes may take to end.
_PATIENCE = 25


def death(folder: Path, share: float) -> Iterator[Row]:
    """SIGKILL to one of three: the others end, and one process alone goes on.

    Gloo wakes nobody who waits for what was being sent to a process as it died (`Pair::signalException` passes over
    unbound buffers in `tx_`). That is rare, and such a one stays until torchrun, half a minute after its SIGTERM, kills
    it: where it happens, the kill is tried once more.
    """
    for victim in part_of((2, 0), share):
        ended = _ended(folder / f"killed-{victim}", victim, signal.SIGKILL)
        if ended.seconds > _PATIENCE:
            ended = _ended(folder / f"killed-{victim}-again", victim, signal.SIGKILL)
        yield Row(f"rank {victim} of 3 killed: others end", ended.told, ended.seconds <= _PATIENCE and ended.said)
        yield _gone_on(ended, f"rank {victim} of 3 killed: --resume on 1 process")


def signals(folder: Path, share: float) -> Iterator[Row]:
    """SIGTERM to one of three, or to all and their launcher: they stop after one step, saved; one alone goes on."""
    for victim in part_of((1, None, 0), share):
        ended = _ended(folder / f"stopped-{victim}", victim, signal.SIGTERM)
        whom = "all and torchrun" if victim is None else f"rank {victim}"
        saved = ended.run.checkpoint_files()
        figure = f"{ended.told}, {max(saved).stem if saved else 'nothing'} saved"
        yield Row(f"SIGTERM to {whom} of 3: all stop", figure, ended.seconds <= _PATIENCE and ended.said)
        yield _gone_on(ended, f"SIGTERM to {whom} of 3: --resume on 1 process")


def init_from(folder: Path, share: float) -> Iterator[Row]:
    """A run that begins with another's model, which was saved amid a window of revival, by one process and by two."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(CASES["ema, bare start"]))
    runs = {size: Run(folder / f"run-{size}") for size in (0, 1, 2)}
    for size, change in ((0, "steps=7"), (1, f"init_from={runs[0].folder}"), (2, f"init_from={runs[0].folder}")):
        command = [*job(max(1, size)), "-m", "vqtool", *_train(config, runs[size]), "--set", f"training.{change}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    one, two = (read_model(runs[size].model)[0].state for size in (1, 2))
    apart = max(float((one[name].double() - two[name].double()).abs().max()) for name in one)
    yield Row("begun with another run's model, by 1 and 2 processes, float32", f"differs by {apart:.1e}", apart <= 1e-4)


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


def _ended(folder: Path, victim: int | None, number: signal.Signals) -> Ended:
    """A job of three, once a rank got the signal; None: all of them, and then torchrun, which passes it on again."""
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
        for process in processes if victim is None else [processes[victim]]:
            os.kill(process, number)
        if victim is None:
            running.send_signal(number)
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
