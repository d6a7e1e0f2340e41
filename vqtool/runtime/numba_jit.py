"""Numba decorators for loops that would take PyTorch several passes over memory."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
T = TypeVar("T")
# Reassociation is allowed, and no operand is NaN.
_FAST = {"contract", "nnan", "nsz", "reassoc"}


def inline_kernel(function: Callable[P, T]) -> Callable[P, T]:
    """Compile a function of NumPy arrays, numbers and other loops, to be inlined into its callers.

    Compiled with reassociation: the order of summation is unspecified. Operands must not be NaN, and indices must be in
    range.
    """
    return numba.njit(nogil=True, fastmath=_FAST)(function)


def strict_kernel(function: Callable[P, T]) -> Callable[P, T]:
    """Compile a loop with strict rounding, so that its results are equal on all machines."""
    # Explicit, because an inlined function would otherwise inherit the flags of its caller.
    return numba.njit(nogil=True, fastmath=False)(function)


def cached_kernel(function: Callable[P, T]) -> Callable[P, T]:
    """Compile a loop that Python calls; compiled on first use, releases the GIL.

    The machine code is cached on disk, beside the module or in the user's cache, and trusted like Python bytecode.
    Numba invalidates the cache only if the module of the function changes, so the loops and constants that it uses must
    be in the same module. After a change of the flags above, edit the modules that use them.
    """
    unkept = numba.njit(nogil=True, fastmath=_FAST)(function)
    try:
        chosen = numba.njit(cache=True, nogil=True, fastmath=_FAST)(function)
    except RuntimeError:  # no writable cache directory
        chosen = unkept

    @wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> T:
        nonlocal chosen
        try:
            return chosen(*arguments, **keywords)
        except Exception:  # the cache is damaged or not writable; any other error is raised again below
            chosen = unkept
            return unkept(*arguments, **keywords)

    return call
