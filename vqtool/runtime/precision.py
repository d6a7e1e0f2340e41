"""Full float32 precision inside the quantizer, whatever autocast and matmul settings the user has chosen."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

# Settings of float32 matrix products, each with the parent setting that it inherits while it is not set itself.
_MATMUL_SETTINGS: tuple[tuple[Any, Any], ...] = (
    (torch.backends.cuda.matmul, torch.backends.cudnn),
    (torch.backends.mkldnn.matmul, torch.backends.mkldnn),  # type: ignore[attr-defined]
)
# The settings are global to the process: the first of several threads saves them, and the last restores them.
_lock = Lock()
_num_inside = 0
_saved_precisions: list[str] = []


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Context without autocast on `device`, and without TF32 or bfloat16 in float32 matrix products.

    The matmul settings are global to the process. Several threads may be inside the context at the same time; the last
    one to leave restores the settings, except those that the user changed meanwhile.
    """
    with torch.autocast(device.type, enabled=False):
        _enter()
        try:
            yield
        finally:
            _exit()


@contextmanager
def flush_denormals(flush: bool) -> Iterator[None]:
    """Set whether this thread rounds denormal numbers (nearer to 0 than the smallest normal number) to 0; then restore.

    A softmax produces many denormal numbers, and some processors are many times slower on them.
    """
    before = _flushes_denormals()
    torch.set_flush_denormal(flush)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _flushes_denormals() -> bool:
    # PyTorch has no getter, so compute a denormal number and look whether it is 0.
    smallest = torch.finfo(torch.float32).smallest_normal
    return not torch.full((), smallest, dtype=torch.float32, device="cpu").div_(2)


def _enter() -> None:
    global _num_inside
    with _lock:
        if not _num_inside:
            # Not torch.get_float32_matmul_precision: it raises if the backends differ. A setting equal to its parent is
            # taken as inherited ("none"), so that it follows the parent again once restored.
            _saved_precisions[:] = [
                "none" if setting.fp32_precision == parent.fp32_precision else setting.fp32_precision
                for setting, parent in _MATMUL_SETTINGS
            ]
            for setting, _ in _MATMUL_SETTINGS:
                setting.fp32_precision = "ieee"
        _num_inside += 1


def _exit() -> None:
    global _num_inside
    with _lock:
        _num_inside -= 1
        if not _num_inside:
            _restore()


def _restore() -> None:
    for (setting, _), precision in zip(_MATMUL_SETTINGS, _saved_precisions, strict=True):
        if setting.fp32_precision == "ieee":  # otherwise the user changed it meanwhile
            setting.fp32_precision = precision


def _after_fork() -> None:
    """Restore the settings in a forked child: the threads inside `full_precision` exist only in the parent."""
    global _lock, _num_inside
    _lock = Lock()
    if _num_inside:
        _restore()
    _num_inside = 0


os.register_at_fork(after_in_child=_after_fork)
