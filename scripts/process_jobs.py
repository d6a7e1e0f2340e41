"""Jobs of several processes, as torchrun starts them."""

import sys
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def job(size: int) -> list[str]:
    """The start of a command that so many processes run, each with one thread; alone, without torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return [sys.executable, *(torchrun if size > 1 else [])]


def part_of(items: Sequence[T], share: float) -> Sequence[T]:
    """The first of them, at least one."""
    return items[: max(1, round(share * len(items)))]
