"""SIGINT and SIGTERM: recorded when they arrive, acted on between two pieces of work."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vqtool.errors import Stopped
from vqtool.runtime.distributed import any_rank
from vqtool.runtime.torchrun import rank_info

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
# State of the whole process, as signals are: whether they are recorded, which arrived, and the original handlers.
_noting: list[bool] = []
_came: list[int] = []
_usual: dict[int, Any] = {}
_deaf_until: list[float] = []
# Seconds within which processes of a job take a second signal for a copy of the first.
_SAME = 5.0


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM is only recorded, for `raise_if_stopped`; a second one has its usual effect.

    In a job of several processes, a second signal shortly after the first is ignored: a launcher may forward a signal
    that all processes have received already.

    Nothing changes if another such context is open, or outside the main thread, which alone handles signals.
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


def raise_if_stopped() -> None:
    """Stop here if a signal arrived; called only where stopping is safe.

    If several processes train together, a signal to one of them stops all at the same call: all processes call this
    function equally often.

    Raises:
        Stopped: names the signal.
    """
    number = any_rank(_came[0] if _came else 0)
    if number:
        raise Stopped(number, f"stopped by {signal.Signals(number).name}")


def _note(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if not _came:
        _came.append(number)
        _deaf_until[:] = [now + (_SAME if rank_info().size > 1 else 0.0)]
    elif now >= _deaf_until[0]:
        _put_back()
        signal.raise_signal(number)


def _put_back() -> None:
    while _usual:
        signal.signal(*_usual.popitem())
