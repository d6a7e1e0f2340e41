"""The command line: one file per command. A command parses options, calls one function and prints the result."""

import atexit
import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Environment variables that set how idle OpenMP threads wait.
_OPENMP_WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def main() -> None:
    """Run the command line of `vqtool`, and exit the process."""
    for number in _STOP_SIGNALS:  # first, because the imports below can take seconds
        signal.signal(number, _exit_on_signal)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    # Let idle OpenMP threads sleep early, unless the user chose otherwise. By default GNU OpenMP spins 300,000 times
    # (some milliseconds) after each parallel region and takes the core from other processes; 10,000 is as fast on an
    # idle machine (see scripts/README.md). OpenMP reads the environment once, when torch is imported.
    if not any(name in os.environ for name in _OPENMP_WAIT_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = "10000"
    try:
        from vqtool.cli.app import app

        app(prog_name="vqtool")
    except SystemExit as exit:
        _exit_without_teardown(exit)
        raise
    finally:
        _ignore_stop_signals()


def _exit_without_teardown(exit: SystemExit) -> None:
    """Exit with the code of `exit`, without the teardown of the interpreter, which takes half a second with PyTorch.

    Returns if the code is a message or the output cannot be flushed: then the normal exit of Python reports it.
    """
    _ignore_stop_signals()
    code = 0 if exit.code is None else exit.code
    if isinstance(code, int):
        atexit._run_exitfuncs()
        with suppress(OSError, ValueError):  # a closed pipe
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _ignore_stop_signals() -> None:
    """Ignore SIGINT and SIGTERM: the command is finished, and a signal must not change its exit code."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _exit_on_signal(number: int, frame: Any) -> NoReturn:
    # Not by an exception, which an import could swallow. Commands with something to save use `deferred_signals`.
    os.write(2, f"vqtool: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)
