"""Numba decorators: results, order of summation, and compilation without a usable cache."""

import threading
import time

import numba
import numpy as np
import pytest

from vqtool.runtime import numba_jit
from vqtool.runtime.numba_jit import cached_kernel, inline_kernel, strict_kernel


@pytest.fixture(autouse=True)
def _temporary_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))


def total(numbers):
    """Return the sum of all numbers."""
    result = 0.0
    for i in range(numbers.size):
        result += numbers[i]
    return result


def test_cached_kernel_computes_the_function():
    summed = cached_kernel(total)
    assert summed(np.arange(10.0)) == 45
    assert summed(numbers=np.arange(4.0)) == 6
    assert summed.__doc__ == total.__doc__


# With reassociation LLVM keeps several partial sums, and the ones are not lost to rounding against 2**53.
def test_strict_kernel_sums_in_order_inside_a_fast_kernel():
    inner = strict_kernel(total)
    numbers = np.array([2.0**53, *[1.0] * 31])
    assert cached_kernel(lambda values: inner(values))(numbers) == 2.0**53
    assert inline_kernel(total)(numbers) > 2.0**53


def test_kernel_compiles_without_a_cache_directory(monkeypatch):
    def njit_without_cache(*arguments, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'total': no locator available for file 'x.py'")
        return njit(*arguments, **options)

    njit = numba.njit
    monkeypatch.setattr(numba_jit.numba, "njit", njit_without_cache)
    assert cached_kernel(total)(np.arange(10.0)) == 45


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), EOFError("Ran out of input")], ids=repr)
def test_kernel_runs_if_its_cache_cannot_be_written_or_read(monkeypatch, error):
    calls = []

    def njit(cache=False, **options):
        def decorate(function):
            def call(*values):
                calls.append(cache)
                if cache:
                    raise error
                return function(*values)

            return call

        return decorate

    monkeypatch.setattr(numba_jit.numba, "njit", njit)
    summed = cached_kernel(total)
    assert summed(np.arange(10.0)) == summed(np.arange(10.0)) == 45
    assert calls == [True, False, False]


def test_kernel_runs_with_a_damaged_cache_file(tmp_path):
    assert cached_kernel(total)(np.arange(10.0)) == 45
    (index,) = tmp_path.rglob("*.nbi")
    index.write_bytes(b"")
    assert cached_kernel(total)(np.arange(10.0)) == 45


def test_errors_of_the_kernel_itself_are_raised():
    with pytest.raises(numba.TypingError):
        cached_kernel(total)("no numbers")


def sum_of_roots(numbers, repeats):
    result = 0.0
    for _ in range(repeats):
        for i in range(numbers.size):
            result += np.sqrt(numbers[i] + result)
    return result


def test_kernel_releases_the_gil():
    kernel, numbers = cached_kernel(sum_of_roots), np.ones(1000)
    kernel(numbers, 1)  # compile it
    thread, wakeups = threading.Thread(target=kernel, args=(numbers, 50_000)), 0  # at least half a second
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        wakeups += 1
    assert wakeups > 10


@pytest.mark.parametrize("decorate", [inline_kernel, strict_kernel, cached_kernel])
def test_kernels_accept_any_number_type(decorate):
    twice = decorate(lambda number: 2 * number)
    assert twice(3) == 6
    assert twice(0.5) == 1
