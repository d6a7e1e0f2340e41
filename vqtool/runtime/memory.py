"""Memory: how much is free, how much some work takes, and the errors for too little of it."""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import torch

from vqtool.errors import DataError

T = TypeVar("T")
# Linux: limit and use of a group of processes, such as a container.
_GROUP = Path("/sys/fs/cgroup")
_REFUSED = (
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "out of memory",
    "can't start new thread",  # a thread needs memory for its stack
)


def check_fits_memory(size: int, what: str, advice: str) -> None:
    """Check that `size` bytes are free.

    Args:
        what: needs them; begins the message.
        advice: ends the message: what to do.

    Raises:
        DataError: fewer bytes are free.
    """
    free = free_memory()
    if size > free:
        raise DataError(f"{what} needs {_shown(size)} of memory, but only {_shown(free)} is free; {advice}")


def free_memory() -> int:
    """The number of bytes that this process can still allocate."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    machine = _fields(Path("/proc/meminfo"))
    if "MemAvailable" in machine:
        free = machine["MemAvailable"] * 1024
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free = min(free, limit - _own("VmSize"))
    group = _group_limit()
    return max(0, free if group is None else min(free, group))


def peak_memory(work: Callable[[], T]) -> tuple[T, int]:
    """The result of `work`, and the largest number of bytes that the process held during it."""
    _forget_peak()
    result = work()
    return result, _own("VmHWM") or _largest()


def mapped_memory() -> int:
    """The number of bytes of mapped files, including libraries, in memory; the system can take them back."""
    return _own("RssFile")


@contextmanager
def convert_out_of_memory(error: type[Exception], advice: str) -> Iterator[None]:
    """Within, running out of memory raises `error` with `advice` on what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        if not is_out_of_memory(fault):
            raise
        raise error(f"out of memory; {advice}") from fault


def is_out_of_memory(fault: Exception) -> bool:
    """Whether an exception means that memory ran out."""
    if isinstance(fault, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(fault, RuntimeError) and any(words in str(fault).lower() for words in _REFUSED)


def _shown(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 10**8 else f"{size / 1e6:,.1f} MB"


def _forget_peak() -> None:
    with suppress(OSError):  # if it cannot be reset, the peak is the one since the process began
        Path("/proc/self/clear_refs").write_text("5")


def _largest() -> int:
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _own(name: str) -> int:
    return _fields(Path("/proc/self/status")).get(name, 0) * 1024


def _group_limit() -> int | None:
    try:
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text()) - _fields(_GROUP / "memory.stat").get("inactive_file", 0)
        return limit - used
    except (OSError, ValueError):
        return None


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file with a name and a number per line, by name; empty if there is no such file."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
