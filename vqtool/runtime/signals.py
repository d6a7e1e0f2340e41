"""SIGINT and SIGTERM: recorded when they arrive, acted on between two units of work."""

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

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# In a job of several processes, a second signal within this time is taken for a forwarded copy of the first.
_DUPLICATE_SECONDS = 5.0

# State of the process, as signal handlers are.
_is_deferring = False  # whether `deferred_signals` is open
_original_handlers: dict[int, Any] = {}
_received: list[int] = []  # the first signal since `deferred_signals` was opened; empty before
_accept_second_at = 0.0  # monotonic time from which a second signal has its original effect


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Record the first SIGINT or SIGTERM for `raise_if_stopped`; a second one has its original effect.

    In a job of several processes, a second signal within 5 seconds is ignored: launchers such as torchrun may forward a
    signal that all processes have received already. At the end the original handlers are restored, and a signal that no
    `raise_if_stopped` has seen is dropped.

    Has no effect inside another `deferred_signals`, or outside the main thread, which alone may set signal handlers.
    """
    global _is_deferring
    if threading.current_thread() is not threading.main_thread() or _is_deferring:
        yield
        return
    _is_deferring = True
    _original_handlers.update({number: signal.signal(number, _record) for number in _STOP_SIGNALS})
    try:
        yield
    finally:
        _restore_handlers()
        _received.clear()
        _is_deferring = False


def raise_if_stopped() -> None:
    """Raise Stopped if a signal was recorded. To be called where stopping is safe.

    Inside `async_any_rank`, a signal to one rank stops all ranks at the same call, the one after that rank's next.
    All ranks must therefore call this function equally often.

    Raises:
        Stopped: names the signal.
    """
    number = any_rank(_received[0] if _received else 0)
    if number:
        raise Stopped(number, f"stopped by {signal.Signals(number).name}")


def _record(number: int, frame: FrameType | None) -> None:
    global _accept_second_at
    now = time.monotonic()
    if not _received:
        _received.append(number)
        _accept_second_at = now + (_DUPLICATE_SECONDS if rank_info().world_size > 1 else 0.0)
    elif now >= _accept_second_at:
        _restore_handlers()
        signal.raise_signal(number)


def _restore_handlers() -> None:
    while _original_handlers:
        signal.signal(*_original_handlers.popitem())
