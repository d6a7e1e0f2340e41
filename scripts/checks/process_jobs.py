"""Commands for jobs of several processes."""

import sys
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def job(size: int) -> list[str]:
    """Return the start of a command for `size` processes, to which a script or `-m MODULE` is appended.

    Several processes are started by torchrun.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return [sys.executable, *(torchrun if size > 1 else [])]


def first_share(items: Sequence[T], share: float) -> Sequence[T]:
    """Return the first `share` (0 to 1) of the items, at least one."""
    return items[: max(1, round(share * len(items)))]
