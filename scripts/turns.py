"""Timing on a shared machine: contestants take turns, and only ratios of their medians within one run are told."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple


class Figure(NamedTuple):
    """One line of a table."""

    what: str
    ours: str
    other: str
    ratio: float
    wanted: str
    reached: bool


def seconds(contestants: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """How long each took in each of so many turns.

    A contestant runs twice in a turn, and the second time counts: what the one before it left behind, caches full of
    its own data and threads that go on spinning for some milliseconds, is nobody's merit or fault.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, run in contestants.items():
            run()
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return taken


def faster(what: str, ours: Sequence[float], other: Sequence[float], least: float) -> Figure:
    """How many times as fast ours is, and whether that is at least so many times."""
    ratio = median(other) / median(ours)
    return Figure(what, spread(ours), spread(other), ratio, f"at least {least:g}", ratio >= least)


def spread(taken: Sequence[float]) -> str:
    """Median, least and greatest, in milliseconds."""
    low, middle, high = (f"{1000 * value:,.4g}" for value in (min(taken), median(taken), max(taken)))
    return f"{middle} [{low}, {high}] ms"
