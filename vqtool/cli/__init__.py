"""The command line, a thin skin: one file a command."""

import atexit
import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

_STOPS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """The entry point of `vqtool`."""
    for number in _STOPS:  # before anything else is imported, which can take seconds
        signal.signal(number, _leave)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed from the start, as of a daemon
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    _shorten_spinning()
    try:
        from vqtool.cli.app import app

        app(prog_name="vqtool")
    except SystemExit as end:
        _end(end)
        raise
    finally:
        _heed_no_stop()


# Each of these sets how OpenMP threads wait for work; a user who sets one of them has chosen.
_WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def _shorten_spinning() -> None:
    """Make idle OpenMP threads sleep after a short spin, unless the user set how they wait.

    By default GNU OpenMP spins 300,000 times, some milliseconds, after each parallel region, and takes the core from
    other processes. 10,000 is as fast on a quiet machine (see scripts/README.md). OpenMP reads the environment once,
    when torch is imported.
    """
    if not any(name in os.environ for name in _WAIT_SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = "10000"


def _end(end: SystemExit) -> None:
    """Leave at once, if all that was said is out: Python would take half a second to take PyTorch apart."""
    _heed_no_stop()
    code = 0 if end.code is None else end.code
    if isinstance(code, int):
        atexit._run_exitfuncs()  # what libraries remove, or write, at the end
        with suppress(OSError, ValueError):  # Python itself says what there is to say of a pipe that is closed
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _heed_no_stop() -> None:
    """All is done but for Python's own end; what came of it must stay the exit code."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)


def _leave(number: int, frame: Any) -> NoReturn:
    # At once: there is nothing to lose where signals are not noted, and an exception might get lost in an import.
    os.write(2, f"vqtool: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)
