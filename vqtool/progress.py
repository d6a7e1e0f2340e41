"""The bar of every pass over data: on standard error, in a terminal alone, and once the pass takes over a second; of
several processes the first alone shows it.

A pass is what can take long, and so it is also where a signal is heeded.
"""

from typing import Any

from tqdm import tqdm

from vqtool.distributed import is_first
from vqtool.printable import printable
from vqtool.signals import heed


class _Pass(tqdm):  # type: ignore[type-arg]
    def update(self, n: float | None = 1) -> bool | None:
        heed()
        return super().update(n)


def pass_bar(name: str, total: int, unit: str = "rows") -> "tqdm[Any]":
    """A bar called `name` over `total` rows, or what `unit` says, which vanishes at the end.

    Raises:
        Stopped: from its `update`, where a signal asked to stop.
    """
    return _Pass(
        total=total, desc=printable(name), unit=f" {unit}", leave=False, disable=None if is_first() else True, delay=1
    )
