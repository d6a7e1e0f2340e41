"""Numba decorators for loops that would take several passes over memory in PyTorch."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
T = TypeVar("T")
# LLVM fast-math flags: allow fused multiply-add and reassociation, assume no NaN, ignore the sign of zero.
_FAST_MATH = {"contract", "nnan", "nsz", "reassoc"}


def inline_kernel(function: Callable[P, T]) -> Callable[P, T]:
    """Compile a function of NumPy arrays and numbers that other kernels call, and that LLVM may inline.

    Compiled with reassociation: the order of summation is unspecified. Operands must not be NaN. Indices must be in
    range: they are not checked.
    """
    return numba.njit(nogil=True, fastmath=_FAST_MATH)(function)


def strict_kernel(function: Callable[P, T]) -> Callable[P, T]:
    """Compile a function with strict IEEE rounding and order of operations: equal results on all machines."""
    # fastmath=False is explicit: an inlined function would otherwise inherit the flags of its caller.
    return numba.njit(nogil=True, fastmath=False)(function)


def cached_kernel(function: Callable[P, T]) -> Callable[P, T]:
    """Compile a kernel for calls from Python: at its first call, with the flags of `inline_kernel`, releasing the GIL.

    The machine code is cached on disk, beside the module or in the user's cache directory, and is trusted like Python
    bytecode. Without a usable cache the kernel is compiled again in every process; a call that fails is repeated once,
    without the cache. Numba invalidates the cache only if the module of the function changes, so the kernels and
    constants that it uses must be in the same module. After a change of the flags above, edit the modules that use
    them.
    """
    uncached = numba.njit(nogil=True, fastmath=_FAST_MATH)(function)
    try:
        kernel = numba.njit(cache=True, nogil=True, fastmath=_FAST_MATH)(function)
    except RuntimeError:  # no writable cache directory
        kernel = uncached

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal kernel
        try:
            return kernel(*args, **kwargs)
        except Exception:  # the cache is damaged or not writable; any other error is raised again below
            kernel = uncached
            return uncached(*args, **kwargs)

    return call
