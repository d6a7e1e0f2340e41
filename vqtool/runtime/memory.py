"""Free and used memory, and errors that say what to lower when memory runs out."""

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
# Linux: memory limit and use of the control group, such as a container.
_CGROUP = Path("/sys/fs/cgroup")
# Parts of messages of RuntimeErrors that PyTorch and Python raise when memory runs out.
_OUT_OF_MEMORY_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "out of memory",
    "can't start new thread",  # a thread needs memory for its stack
)


def check_fits_memory(num_bytes: int, subject: str, advice: str) -> None:
    """Check that `num_bytes` of CPU memory are free (see `free_memory`).

    Args:
        subject: what needs the memory; begins the message.
        advice: what to do; ends the message.

    Raises:
        DataError: less memory is free.
    """
    free = free_memory()
    if num_bytes > free:
        raise DataError(
            f"{subject} needs {_format_bytes(num_bytes)} of memory, but only {_format_bytes(free)} is free; {advice}"
        )


def free_memory() -> int:
    """Return the bytes of CPU memory that this process can still allocate, at least 0.

    The minimum of the machine's available memory and of what this process and its control group (Linux, version 2) have
    left of their limits, RLIMIT_AS and memory.max.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    machine = _read_fields(Path("/proc/meminfo"))
    if "MemAvailable" in machine:
        free = machine["MemAvailable"] * 1024
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free = min(free, limit - _process_bytes("VmSize"))
    with suppress(OSError, ValueError):  # no control group, or no limit ("max")
        limit = int((_CGROUP / "memory.max").read_text())
        cached = _read_fields(_CGROUP / "memory.stat").get("inactive_file", 0)  # the kernel frees it on demand
        free = min(free, limit - (int((_CGROUP / "memory.current").read_text()) - cached))
    return max(0, free)


def peak_memory(function: Callable[[], T]) -> tuple[T, int]:
    """Call `function`; return its result and the peak resident memory of the process during the call, in bytes.

    The peak includes what the process held before. If the system cannot reset it, it is the peak since the process
    started.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    result = function()
    peak = _process_bytes("VmHWM")
    if not peak:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return result, peak


def mapped_memory() -> int:
    """Return the resident bytes of mapped files, including libraries, which the system can free; 0 without /proc."""
    return _process_bytes("RssFile")


@contextmanager
def convert_out_of_memory(error_type: type[Exception], advice: str) -> Iterator[None]:
    """Convert an out-of-memory exception of the body, on CPU or GPU, to `error_type` with the text `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise error_type(f"out of memory; {advice}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an exception means that memory ran out, on the CPU or the GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY_MESSAGES)


def _format_bytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 10**8 else f"{num_bytes / 1e6:,.1f} MB"


def _process_bytes(field: str) -> int:
    """Return a field of /proc/self/status, which is in KiB, in bytes; 0 if the system has no such file or field."""
    return _read_fields(Path("/proc/self/status")).get(field, 0) * 1024


def _read_fields(path: Path) -> dict[str, int]:
    """Parse a file with a name and an integer per line, and skip other lines; empty if the file cannot be read."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
