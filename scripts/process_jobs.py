"""Jobs of several processes, as torchrun starts them."""

import sys
from typing import NamedTuple


class Row(NamedTuple):
    """One line of a table."""

    what: str
    figure: str
    held: bool


def job(size: int) -> list[str]:
    """The start of a command that so many processes run, each with one thread; alone, without torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return [sys.executable, *(torchrun if size > 1 else [])]
