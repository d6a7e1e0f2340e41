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
from checks.soak_kills import STEPS, is_resumable, results_of, run_seconds, write_config
from vqtool.config import load_config
from vqtool.errors import Stopped
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train

_KINDS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
# Probability that a stopped run is overwritten instead of resumed.
_OVERWRITE_PROBABILITY = 0.2


def mixed(folder: Path, stops: int) -> Iterator[Row]:
    """Send SIGTERM, SIGINT and SIGKILL at random times to runs that keep one checkpoint, `stops` times in all.

    A stopped run is resumed or, sometimes, overwritten. It must be resumable after each stop, and at its end equal to
    an uninterrupted run.
    """
    intervals = {"checkpoint_every": 4, "validate_every": 5, "log_every": 3, "keep_checkpoints": 1}
    settings = load_config(write_config(folder, {"steps": STEPS, **intervals}))
    train(settings, folder / "straight")
    expected, rng, seconds = results_of(folder / "straight"), random.Random(stops), run_seconds(folder, settings)
    runs, not_resumable, different, failed, overwritten, stop_counts = 0, 0, 0, 0, 0, dict.fromkeys(_KINDS, 0)
    while sum(stop_counts.values()) + failed < stops:
        run = folder / f"run-{runs}"
        while sum(stop_counts.values()) + failed < stops and not RunDirectory(run).summary.exists():
            kind, overwrite = rng.choice(_KINDS), rng.random() < _OVERWRITE_PROBABILITY
            work = partial(train, settings, run, resume=not overwrite, overwrite=overwrite)
            was_stopped = _stop_after(work, rng.uniform(0, seconds / 3), kind)
            failed += was_stopped is None
            stop_counts[kind] += was_stopped is True
            overwritten += overwrite and RunDirectory(run).exists
            not_resumable += not is_resumable(RunDirectory(run))
        train(settings, run, resume=True)
        different += results_of(run) != expected
        shutil.rmtree(run)
        runs += 1
    stops_by_signal = ", ".join(f"{count} {kind.name}" for kind, count in stop_counts.items())
    result = (
        f"{stops_by_signal}, {overwritten} times overwritten; {not_resumable} times not resumable, {failed} failed; "
        f"{different} of {runs} runs differ from an uninterrupted run"
    )
    yield Row(f"{stops} stops of three kinds", result, not (not_resumable or different or failed))


def _stop_after(work: Callable[[], object], seconds: float, kind: signal.Signals) -> bool | None:
    """Run `work` in a child process, and send it a signal after some seconds.

    Returns:
        True: the signal stopped it; False: it had finished; None: it failed in another way.
    """
    # Outside of `work`, SIGINT ends the child at once: a KeyboardInterrupt could leave `_do`.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    child = os.fork()
    if not child:
        _run_and_exit(work)
    signal.signal(signal.SIGINT, handler)
    time.sleep(seconds)
    os.kill(child, kind)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == kind or None
    return {0: False, 128 + kind: True}.get(os.WEXITSTATUS(status))


def _run_and_exit(work: Callable[[], object]) -> None:
    """Run `work` without standard error; exit with 0, with 128 + signal if stopped, or with 1 and a traceback."""
    code = 1
    try:
        stderr = os.dup(2)
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
        work()
        code = 0
    except Stopped as error:
        code = 128 + error.signal
    except BaseException:
        os.dup2(stderr, 2)
        traceback.print_exc()
    finally:
        os._exit(code)
