"""Progress on standard error: a bar on a terminal; elsewhere, such as in a pipe, a plain line about every 10 seconds.

Of several processes only rank 0 shows progress. A pass over data can take long, so its `update` also checks for a stop
signal.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from threading import RLock
from types import TracebackType
from typing import Self, TypeVar

from tqdm import tqdm

from vqtool.runtime.distributed import is_rank0
from vqtool.runtime.signals import raise_if_stopped
from vqtool.runtime.terminal import escape_control

T = TypeVar("T")
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


class Bar(tqdm):  # type: ignore[type-arg]
    """A tqdm bar with a lock that belongs to this process alone.

    tqdm's own lock is shared with processes forked later: if one of them is killed while it holds the lock, all others
    block.
    """


Bar.set_lock(RLock())
# A thread that the child process does not have may have held the lock at the fork.
os.register_at_fork(after_in_child=lambda: Bar.set_lock(RLock()))


class LineWriter:
    """Writes plain lines, not too often.

    Args:
        interval: seconds from one line to the next, whichever work they are about.
        clock: returns seconds, counted from any moment.
    """

    def __init__(self, interval: float = 10, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval = interval
        self.clock = clock
        self._last = clock()

    def write(self, line: Callable[[], str]) -> None:
        """Write a line if one is due."""
        now = self.clock()
        if now - self._last >= self.interval:
            self._last = now
            Bar.write(escape_control(line()), file=sys.stderr)


# Shared by all work of the process, so that nested work does not write more lines.
LINES = LineWriter()


class Progress:
    """How much of a piece of work is done, as a bar, as lines, or not shown.

    Args:
        total: units of work in all.
        done: units that were done before.
        bar: None: write lines instead.
        lines: None: show nothing.
    """

    def __init__(self, total: int, done: int, bar: Bar | None, lines: LineWriter | None) -> None:
        self.total, self.done = total, done
        self._bar, self._lines = bar, lines
        self._began = lines.clock() if lines else 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
        elif self._lines:
            self._lines.write(self._line)

    def _line(self) -> str:
        raise NotImplementedError


class PassProgress(Progress):
    """Progress of a pass over data, called `name`, in `unit`; `eta`: whether the time left is estimated."""

    def __init__(self, name: str, unit: str, total: int, bar: Bar | None, lines: LineWriter | None, eta: bool) -> None:
        super().__init__(total, 0, bar, lines)
        self._name, self._unit, self._eta = name, unit, eta

    def update(self, n: int = 1) -> None:
        """Count `n` more units as done.

        Raises:
            Stopped: a signal asked to stop.
        """
        raise_if_stopped()
        super().update(n)

    def _line(self) -> str:
        assert self._lines
        line = f"{self._name}: {self.done:,} of {self.total:,} {self._unit} ({self.done / max(1, self.total):.0%})"
        if not self._eta or not 0 < self.done < self.total:
            return line
        left = (self._lines.clock() - self._began) / self.done * (self.total - self.done)
        return f"{line}, ETA {duration(left)}"


class StepProgress(Progress):
    """Progress of training, with the time left by `eta`, which returns seconds, or None where that is unknown."""

    def __init__(
        self, total: int, done: int, eta: Callable[[], float | None], bar: Bar | None, lines: LineWriter | None
    ) -> None:
        super().__init__(total, done, bar, lines)
        self._eta, self._status = eta, ""

    def update(self, n: int = 1) -> None:
        """Count `n` more steps as done."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._described(), refresh=False)
        super().update(n)

    def show(self, status: str) -> None:
        """Set the status that is shown beside the steps, such as the loss."""
        self._status = status

    def _described(self) -> str:
        seconds = self._eta()
        return "  ".join(filter(None, [self._status, "" if seconds is None else f"ETA {duration(seconds)}"]))

    def _line(self) -> str:
        return "  ".join(filter(None, [f"step {self.done}/{self.total}", self._described()]))


def pass_bar(
    name: str, total: int, unit: str = "rows", delay: float = 1, lines: LineWriter = LINES, eta: bool = True
) -> PassProgress:
    """Show the progress of a pass over `total` units; a bar appears after `delay` seconds and is removed at the end.

    Args:
        eta: whether to estimate the time left in lines; not for units that take unequal times.

    Raises:
        Stopped: from its `update`, if a signal asked to stop.
    """
    bar = None
    if _shows_bar():
        bar = Bar(total=total, desc=escape_control(name), unit=f" {unit}", leave=False, delay=delay, miniters=1)
    return PassProgress(name, unit, total, bar, lines if is_rank0() else None, eta)


def with_progress(items: Sequence[T], name: str, unit: str = "rows") -> Iterator[T]:
    """Yield items, and show the progress of the work on them.

    Raises:
        Stopped: between two items, if a signal asked to stop.
    """
    with pass_bar(name, len(items), unit) as bar:
        for item in items:
            yield item
            bar.update()


def step_bar(
    total: int, done: int, eta: Callable[[], float | None] = lambda: None, lines: LineWriter = LINES
) -> StepProgress:
    """Show the progress of training over `total` steps, `done` of which were taken before."""
    bar = None
    if _shows_bar():
        form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        bar = Bar(total=total, initial=done, desc="train", bar_format=form, miniters=1)
    return StepProgress(total, done, eta, bar, lines if is_rank0() else None)


def duration(seconds: float) -> str:
    """A time in words: 40 s, 3 min, 2 h 10 min, 3 d 4 h."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    if seconds < 99.5 * _MINUTE:
        return f"{round(seconds / _MINUTE)} min"
    if seconds < 2 * _DAY:
        hours, minutes = divmod(round(seconds / _MINUTE), 60)
        return f"{hours} h {minutes} min"
    days, hours = divmod(round(seconds / _HOUR), 24)
    return f"{days} d {hours} h"


def _shows_bar() -> bool:
    return is_rank0() and sys.stderr is not None and sys.stderr.isatty()
