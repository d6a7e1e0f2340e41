"""The command line, a thin skin: one file a command."""

import signal
import sys
from typing import Any, NoReturn

from vqtool.signals import noting_signals


def main() -> None:
    """The entry point of `vqtool`."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with noting_signals():  # before anything else is imported, which can take seconds
            from vqtool.cli.app import app

            app(prog_name="vqtool")
    finally:
        # All is done but for Python's own end; what came of it must stay the exit code.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _terminate(number: int, frame: Any) -> NoReturn:
    # As an exception, so that half-written files are removed on the way out.
    sys.exit(128 + number)
