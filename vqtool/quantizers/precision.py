"""Full float32, whatever the user has allowed elsewhere: the quantizer's promises are about that arithmetic."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within: no autocast on `device`, and no matrix product in less than float32. The user's settings come back."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    # torch.get_float32_matmul_precision raises where one backend was set on its own, so each is asked itself.
    before = [backend.fp32_precision for backend in backends]
    with torch.autocast(device.type, enabled=False):
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision
