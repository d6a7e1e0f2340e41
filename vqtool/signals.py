"""SIGINT and SIGTERM: noted when they come, heeded between two pieces of work, so that nothing is left half done."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vqtool.distributed import any_process
from vqtool.errors import Stopped
from vqtool.launcher import place

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
# Signals are the whole process' own, and so is this: whether they are noted, which came, what else becomes of them.
_noting: list[bool] = []
_came: list[int] = []
_usual: dict[int, Any] = {}
_deaf_until: list[float] = []
# Seconds within which processes of a job take a second signal for the first.
_SAME = 5.0


@contextmanager
def noting_signals() -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM is only noted, for `heed`; a second one takes its usual course.

    In a job of several processes, one that comes shortly after is taken for the same: a launcher passes on what all
    processes may have got already.

    Nothing is changed where another such context is open already, or beside the main thread, which alone handles
    signals.
    """
    if threading.current_thread() is not threading.main_thread() or _noting:
        yield
        return
    _noting.append(True)
    _usual.update({number: signal.signal(number, _note) for number in _NUMBERS})
    try:
        yield
    finally:
        _put_back()
        _came.clear()
        _noting.clear()


def heed() -> None:
    """Stop here, if a signal asked to; called wherever that leaves nothing half done.

    Where several processes train together, one that was asked stops all of them, at the same call of this: all of
    them call it equally often.

    Raises:
        Stopped: names the signal.
    """
    number = any_process(_came[0] if _came else 0)
    if number:
        raise Stopped(number, f"stopped by {signal.Signals(number).name}")


def _note(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if not _came:
        _came.append(number)
        _deaf_until[:] = [now + (_SAME if place().size > 1 else 0.0)]
    elif now >= _deaf_until[0]:
        _put_back()
        signal.raise_signal(number)


def _put_back() -> None:
    while _usual:
        signal.signal(*_usual.popitem())
