"""Compiled loops: what they give, and that they need no place to be kept in."""

import threading
import time

import numba
import numpy as np
import pytest

from vqtool.runtime import numba_jit as compiled
from vqtool.runtime.numba_jit import cached_kernel, inline_kernel, strict_kernel


@pytest.fixture(autouse=True)
def _kept_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))


def total(numbers):
    """The sum of all."""
    found = 0.0
    for place in range(numbers.size):
        found += numbers[place]
    return found


def test_a_loop_called_from_python_is_the_function_that_was_written():
    summed = cached_kernel(total)
    assert summed(np.arange(10.0)) == 45
    assert summed(numbers=np.arange(4.0)) == 6
    assert summed.__doc__ == total.__doc__


# Were the order left open, LLVM would sum eight at a time, and lose no 1.
def test_an_exact_loop_sums_in_order_whoever_calls_it():
    inner = strict_kernel(total)
    numbers = np.array([2.0**53, *[1.0] * 31])
    assert cached_kernel(lambda values: inner(values))(numbers) == 2.0**53
    assert inline_kernel(total)(numbers) > 2.0**53


def test_without_a_place_to_keep_it_a_loop_is_compiled_all_the_same(monkeypatch):
    def nowhere(*arguments, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'total': no locator available for file 'x.py'")
        return njit(*arguments, **options)

    njit = numba.njit
    monkeypatch.setattr(compiled.numba, "njit", nowhere)
    assert cached_kernel(total)(np.arange(10.0)) == 45


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), EOFError("Ran out of input")], ids=repr)
def test_what_cannot_be_kept_or_read_again_stops_no_loop(monkeypatch, error):
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

    monkeypatch.setattr(compiled.numba, "njit", njit)
    summed = cached_kernel(total)
    assert summed(np.arange(10.0)) == summed(np.arange(10.0)) == 45
    assert calls == [True, False, False]


def test_a_damaged_cache_stops_no_loop(tmp_path):
    assert cached_kernel(total)(np.arange(10.0)) == 45
    (index,) = tmp_path.rglob("*.nbi")
    index.write_bytes(b"")
    assert cached_kernel(total)(np.arange(10.0)) == 45


def test_errors_of_a_loop_itself_are_raised():
    with pytest.raises(numba.TypingError):
        cached_kernel(total)("no numbers")


def roots(numbers, times):
    found = 0.0
    for _ in range(times):
        for place in range(numbers.size):
            found += np.sqrt(numbers[place] + found)
    return found


def test_other_threads_go_on_meanwhile():
    long, numbers = cached_kernel(roots), np.ones(1000)
    long(numbers, 1)  # compiled
    thread, turns = threading.Thread(target=long, args=(numbers, 50_000)), 0  # half a second, or more
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 10


@pytest.mark.parametrize("decorate", [inline_kernel, strict_kernel, cached_kernel])
def test_each_takes_numbers_of_any_type(decorate):
    twice = decorate(lambda number: 2 * number)
    assert twice(3) == 6
    assert twice(0.5) == 1
