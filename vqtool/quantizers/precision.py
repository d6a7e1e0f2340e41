"""Full float32, whatever the user has allowed elsewhere: the quantizer's promises are about that arithmetic."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

_BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
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


def _enter() -> None:
    global _within
    with _lock:
        if not _within:
            # torch.get_float32_matmul_precision raises where one backend was set on its own, so each is asked itself.
            _before[:] = [backend.fp32_precision for backend in _BACKENDS]
            for backend in _BACKENDS:
                backend.fp32_precision = "ieee"
        _within += 1


def _leave() -> None:
    global _within
    with _lock:
        _within -= 1
        if not _within:
            for backend, precision in zip(_BACKENDS, _before, strict=True):
                backend.fp32_precision = precision
