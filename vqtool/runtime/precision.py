"""Full float32, whatever the user has allowed elsewhere: the quantizer's promises are about that arithmetic."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

# Each with what its setting comes from where it has none.
_BACKENDS: tuple[tuple[Any, Any], ...] = (
    (torch.backends.cuda.matmul, torch.backends.cudnn),
    (torch.backends.mkldnn.matmul, torch.backends.mkldnn),  # type: ignore[attr-defined]
)
# The settings are the process's: of several threads within, the first notes them and the last puts them back.
_lock = Lock()
_within = 0
_before: list[str] = []


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within: no autocast on `device`, and no matrix product in less than float32. The user's settings come back."""
    with torch.autocast(device.type, enabled=False):
        _enter()
        try:
            yield
        finally:
            _leave()


@contextmanager
def flush_denormals(flush: bool) -> Iterator[None]:
    """Within, whether this thread takes for 0 what is nearer to 0 than the least normal number.

    Some processors take many times as long for such numbers, and a softmax makes many.
    """
    before = _flushes()
    torch.set_flush_denormal(flush)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _flushes() -> bool:
    """Whether this thread does so already; PyTorch has no call that tells."""
    least = torch.finfo(torch.float32).smallest_normal
    return not torch.full((), least, dtype=torch.float32, device="cpu").div_(2)


def _enter() -> None:
    global _within
    with _lock:
        if not _within:
            # torch.get_float32_matmul_precision raises where one backend was set on its own, so each is asked itself.
            _before[:] = [_own(backend.fp32_precision, parent.fp32_precision) for backend, parent in _BACKENDS]
            for backend, _ in _BACKENDS:
                backend.fp32_precision = "ieee"
        _within += 1


def _own(precision: str, inherited: str) -> str:
    """A backend's own setting: what it says may be another's, and would no longer follow that once set."""
    return "none" if precision == inherited else precision


def _leave() -> None:
    global _within
    with _lock:
        _within -= 1
        if not _within:
            _put_back()


def _put_back() -> None:
    for (backend, _), precision in zip(_BACKENDS, _before, strict=True):
        if backend.fp32_precision == "ieee":  # else the user has set another meanwhile
            backend.fp32_precision = precision


def _forked() -> None:
    """A child process has none of the threads that were within."""
    global _lock, _within
    _lock = Lock()
    if _within:
        _put_back()
    _within = 0


os.register_at_fork(after_in_child=_forked)
