"""Progress on standard error: a bar on a terminal, otherwise a plain line about every 10 seconds.

Only rank 0 shows progress. Passes over data can take long, so their `update` also checks for a stop signal.
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


class ProgressBar(tqdm):  # type: ignore[type-arg]
    """A tqdm bar whose lock is not shared between processes.

    Forked processes share tqdm's default lock: if one of them is killed while it holds the lock, all others block.
    """


ProgressBar.set_lock(RLock())
# In a forked child the lock may be held by a thread that exists only in the parent.
os.register_at_fork(after_in_child=lambda: ProgressBar.set_lock(RLock()))


class LineWriter:
    """Writes lines to standard error, at most one per interval, the first one after the first interval.

    Args:
        interval: minimum seconds between two lines.
        clock: returns a monotonic time in seconds.
    """

    def __init__(self, interval: float = 10, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval = interval
        self.clock = clock
        self._last_write = clock()

    def write(self, line: Callable[[], str]) -> None:
        """Write the line that `line` returns, control characters escaped; within the interval do not call `line`."""
        now = self.clock()
        if now - self._last_write >= self.interval:
            self._last_write = now
            ProgressBar.write(escape_control(line()), file=sys.stderr)


# One for the process, so that nested work does not write more lines.
LINE_WRITER = LineWriter()


class Progress:
    """Progress of work that consists of units, shown as a bar, as lines or not at all.

    Args:
        total: number of units.
        done: units that are already done.
        bar: bar to draw; None: write lines with `line_writer`.
        line_writer: writes lines if there is no bar; None: show nothing.
    """

    def __init__(self, total: int, done: int, bar: ProgressBar | None, line_writer: LineWriter | None) -> None:
        self.total, self.done = total, done
        self._bar, self._line_writer = bar, line_writer
        self._start_time = line_writer.clock() if line_writer else 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, n: int = 1) -> None:
        """Add `n` units to those done, and show the progress."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
        elif self._line_writer:
            self._line_writer.write(self._line)

    def _line(self) -> str:
        raise NotImplementedError


class PassProgress(Progress):
    """Progress of a pass over data; `update` also checks for a stop signal. Other arguments as for `Progress`.

    Args:
        name: what the pass does, such as "encode".
        unit: name of its units, such as "rows".
        eta: whether lines contain the estimated remaining time.
    """

    def __init__(
        self, name: str, unit: str, total: int, bar: ProgressBar | None, line_writer: LineWriter | None, eta: bool
    ) -> None:
        super().__init__(total, 0, bar, line_writer)
        self._name, self._unit, self._eta = name, unit, eta

    def update(self, n: int = 1) -> None:
        """Add `n` units to those done, and show the progress.

        Raises:
            Stopped: a stop signal was received (see `raise_if_stopped`); the units are not added.
        """
        raise_if_stopped()
        super().update(n)

    def _line(self) -> str:
        assert self._line_writer
        line = f"{self._name}: {self.done:,} of {self.total:,} {self._unit} ({self.done / max(1, self.total):.0%})"
        if not self._eta or not 0 < self.done < self.total:
            return line
        remaining_seconds = (self._line_writer.clock() - self._start_time) / self.done * (self.total - self.done)
        return f"{line}, ETA {format_duration(remaining_seconds)}"


class StepProgress(Progress):
    """Progress of training steps. Other arguments as for `Progress`.

    Args:
        eta: returns the remaining seconds, or None if they are unknown.
    """

    def __init__(
        self,
        total: int,
        done: int,
        eta: Callable[[], float | None],
        bar: ProgressBar | None,
        line_writer: LineWriter | None,
    ) -> None:
        super().__init__(total, done, bar, line_writer)
        self._eta, self._status = eta, ""

    def update(self, n: int = 1) -> None:
        """Add `n` steps to those done, and show the progress."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._description(), refresh=False)
        super().update(n)

    def show(self, status: str) -> None:
        """Set the text that the next updates show beside the number of steps, such as the loss."""
        self._status = status

    def _description(self) -> str:
        seconds = self._eta()
        return "  ".join(filter(None, [self._status, "" if seconds is None else f"ETA {format_duration(seconds)}"]))

    def _line(self) -> str:
        return "  ".join(filter(None, [f"step {self.done}/{self.total}", self._description()]))


def pass_bar(
    name: str,
    total: int,
    unit: str = "rows",
    delay: float = 1,
    line_writer: LineWriter = LINE_WRITER,
    eta: bool = True,
) -> PassProgress:
    """Create the progress of a pass over `total` units.

    Args:
        name: what the pass does, such as "encode".
        unit: name of the units.
        delay: seconds after which the bar appears on a terminal; it is removed at the end.
        line_writer: writes lines if standard error is not a terminal.
        eta: whether lines contain the estimated remaining time; False for units that take different times.
    """
    bar = None
    if _shows_bar():
        bar = ProgressBar(total=total, desc=escape_control(name), unit=f" {unit}", leave=False, delay=delay, miniters=1)
    return PassProgress(name, unit, total, bar, line_writer if is_rank0() else None, eta)


def with_progress(items: Sequence[T], name: str, unit: str = "rows") -> Iterator[T]:
    """Yield the items, and show progress.

    Raises:
        Stopped: after an item, if a stop signal was received.
    """
    with pass_bar(name, len(items), unit) as bar:
        for item in items:
            yield item
            bar.update()


def step_bar(
    total: int, done: int, eta: Callable[[], float | None] = lambda: None, line_writer: LineWriter = LINE_WRITER
) -> StepProgress:
    """Create the progress of a run of `total` steps, of which an earlier process took `done`; `eta` in seconds."""
    bar = None
    if _shows_bar():
        bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        bar = ProgressBar(total=total, initial=done, desc="train", bar_format=bar_format, miniters=1)
    return StepProgress(total, done, eta, bar, line_writer if is_rank0() else None)


def format_duration(seconds: float) -> str:
    """Format seconds: 1 s to 99 s, 2 min to 99 min, 1 h 40 min to 48 h 0 min, then days and hours (3 d 4 h)."""
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
