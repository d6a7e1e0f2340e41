"""Loops compiled for the processor, for what would take PyTorch many passes over memory."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
T = TypeVar("T")
# Sums may be made in any order, and no comparison sees a NaN.
_FAST = {"contract", "nnan", "nsz", "reassoc"}


def loop(function: Callable[P, T]) -> Callable[P, T]:
    """A function of NumPy arrays, numbers and other loops, that is compiled as a part of those that call it.

    Its sums are made in any order, as is soonest done; no number may be NaN, and no index negative or too large.
    """
    return numba.njit(nogil=True, fastmath=_FAST)(function)


def exact_loop(function: Callable[P, T]) -> Callable[P, T]:
    """A loop whose every number is rounded as it is written, so that they are the same on every machine."""
    # Said, as it would be taken over from the loop that calls.
    return numba.njit(nogil=True, fastmath=False)(function)


def entry(function: Callable[P, T]) -> Callable[P, T]:
    """A loop that Python calls, compiled by Numba at its first call; while it runs, other threads of Python go on.

    What is compiled is kept on disk for the next process, beside the module or in the user's cache, like Python's own
    bytecode and no less trusted. Numba sees changes of the module alone: what is used, loops and constants, stands in
    it, too, and who changes the flags above changes the modules.
    """
    unkept = numba.njit(nogil=True, fastmath=_FAST)(function)
    try:
        chosen = numba.njit(cache=True, nogil=True, fastmath=_FAST)(function)
    except RuntimeError:  # there is no place to keep it
        chosen = unkept

    @wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> T:
        nonlocal chosen
        try:
            return chosen(*arguments, **keywords)
        except Exception:  # what is kept cannot be written, or is damaged; any other reason comes again
            chosen = unkept
            return unkept(*arguments, **keywords)

    return call
