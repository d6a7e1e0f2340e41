"""The bar of every pass over data: on standard error, in a terminal alone, and once the pass takes over a second."""

from typing import Any

from tqdm import tqdm

from vqtool.printable import printable


def pass_bar(name: str, total: int, unit: str = "rows") -> "tqdm[Any]":
    """A bar called `name` over `total` rows, or what `unit` says, which vanishes at the end."""
    return tqdm(total=total, desc=printable(name), unit=f" {unit}", leave=False, disable=None, delay=1)
