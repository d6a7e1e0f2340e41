"""The bars of a training and of every pass over data: on standard error, in a terminal alone; of several processes the
first alone shows them.

A pass is what can take long, and so it is also where a signal is heeded.
"""

import os
from threading import RLock

from tqdm import tqdm

from vqtool.distributed import is_first
from vqtool.printable import printable
from vqtool.signals import heed


class Bar(tqdm):  # type: ignore[type-arg]
    """A bar whose lock is this process's own.

    The lock that tqdm would make is one with that of processes forked later: one of them, killed while it holds it,
    would stop all others.
    """


Bar.set_lock(RLock())
# A thread may have held it, which a child process does not have.
os.register_at_fork(after_in_child=lambda: Bar.set_lock(RLock()))


class _Pass(Bar):
    def update(self, n: float | None = 1) -> bool | None:
        heed()
        return super().update(n)


def pass_bar(name: str, total: int, unit: str = "rows") -> Bar:
    """A bar called `name` over `total` rows, or what `unit` says: there once it takes over a second, gone at the end.

    Raises:
        Stopped: from its `update`, where a signal asked to stop.
    """
    return _Pass(total=total, desc=printable(name), unit=f" {unit}", leave=False, disable=_hidden(), delay=1)


def step_bar(total: int, done: int) -> Bar:
    """A bar over the steps of a training, some of which may be done."""
    return Bar(total=total, initial=done, desc="train", unit="step", disable=_hidden())


def _hidden() -> bool | None:
    return None if is_first() else True  # None: where there is no terminal
