"""Timing on a shared machine: the implementations alternate, and ratios are taken within one run."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple


class Measurement(NamedTuple):
    """One row of a table: a measurement of vqtool, and of a peer if there is one."""

    case: str
    vqtool: str
    """Result of vqtool, with its unit."""
    peer: str = ""
    """Name of the peer; empty: there is none."""
    peer_result: str = ""
    ratio: float | None = None
    """Result of the peer divided by that of vqtool: how many times as fast, or as small, vqtool is."""


def time_alternately(implementations: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Return the seconds of each implementation, by name: one value per turn.

    In a turn each implementation runs twice and the second run is timed. The first run absorbs the effects of the
    previous implementation: its data in the caches, and its threads, which spin for some milliseconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for _ in range(turns):
        for name, run in implementations.items():
            run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compare_timings(case: str, ours: Sequence[float], peer: str, theirs: Sequence[float]) -> Measurement:
    """Return the row that compares the seconds of vqtool with those of a peer; the ratio is that of the medians."""
    return Measurement(case, format_spread(ours), peer, format_spread(theirs), median(theirs) / median(ours))


def format_spread(seconds: Sequence[float]) -> str:
    """Format a list of seconds as median [minimum, maximum] in milliseconds."""
    low, middle, high = (f"{1000 * value:,.4g}" for value in (min(seconds), median(seconds), max(seconds)))
    return f"{middle} [{low}, {high}] ms"
