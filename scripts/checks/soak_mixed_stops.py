"""Checks of runs that are stopped by SIGTERM, SIGINT and SIGKILL, and sometimes overwritten."""

import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from checks.guarantees import Row
from checks.soak_kills import STEPS, config_of, fit, outcome, span_of
from vqtool.config import load_config
from vqtool.errors import Stopped
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train

_KINDS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
# Probability that a run is overwritten instead of resumed.
_OVERWRITE = 0.2


def mixed(folder: Path, stops: int) -> Iterator[Row]:
    """Send SIGTERM, SIGINT and SIGKILL at random times to runs that keep one checkpoint; overwrite some of them."""
    often = {"checkpoint_every": 4, "validate_every": 5, "log_every": 3, "keep_checkpoints": 1}
    settings = load_config(config_of(folder, {"steps": STEPS, **often}))
    train(settings, folder / "straight")
    expected, picks, span = outcome(folder / "straight"), random.Random(stops), span_of(folder, settings)
    runs, unfit, different, failed, overwritten, updates = 0, 0, 0, 0, 0, dict.fromkeys(_KINDS, 0)
    while sum(updates.values()) + failed < stops:
        run = folder / f"run-{runs}"
        while sum(updates.values()) + failed < stops and not RunDirectory(run).summary.exists():
            kind, overwrite = picks.choice(_KINDS), picks.random() < _OVERWRITE
            work = partial(train, settings, run, resume=not overwrite, overwrite=overwrite)
            came = _stop_after(work, picks.uniform(0, span / 3), kind)
            failed += came is None
            updates[kind] += came is True
            overwritten += overwrite and RunDirectory(run).exists
            unfit += not fit(RunDirectory(run))
        train(settings, run, resume=True)
        different += outcome(run) != expected
        shutil.rmtree(run)
        runs += 1
    tally = ", ".join(f"{count} {kind.name}" for kind, count in updates.items())
    result = (
        f"{tally}, {overwritten} times overwritten; {unfit} times not resumable, {failed} failed; "
        f"{different} of {runs} runs differ from an uninterrupted run"
    )
    yield Row(f"{stops} stops of three kinds", result, not (unfit or different or failed))


def _stop_after(work: Callable[[], object], seconds: float, kind: signal.Signals) -> bool | None:
    """Run `work` in a child process and send it a signal; return whether it was stopped, or None if it failed."""
    # Outside of `work`, SIGINT ends the child at once: a KeyboardInterrupt could leave `_do`.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    child = os.fork()
    if not child:
        _do(work)
    signal.signal(signal.SIGINT, before)
    time.sleep(seconds)
    os.kill(child, kind)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == kind or None
    return {0: False, 128 + kind: True}.get(os.WEXITSTATUS(status))


def _do(work: Callable[[], object]) -> None:
    """Run `work` and exit the child process."""
    code = 1
    try:
        said = os.dup(2)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        work()
        code = 0
    except Stopped as error:
        code = 128 + error.signal
    except BaseException:
        os.dup2(said, 2)
        traceback.print_exc()
    finally:
        os._exit(code)
