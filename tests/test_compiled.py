"""Compiled loops: what they give, and that they need no place to be kept in."""

import threading
import time

import numba
import numpy as np
import pytest

from vqtool import compiled
from vqtool.compiled import entry, exact_loop, loop


def total(numbers):
    """The sum of all."""
    found = 0.0
    for place in range(numbers.size):
        found += numbers[place]
    return found


def test_a_loop_called_from_python_is_the_function_that_was_written():
    summed = entry(total)
    assert summed(np.arange(10.0)) == 45
    assert summed(numbers=np.arange(4.0)) == 6
    assert summed.__doc__ == total.__doc__


# Were the order left open, LLVM would sum eight at a time, and lose no 1.
def test_an_exact_loop_sums_in_order_whoever_calls_it():
    inner = exact_loop(total)
    numbers = np.array([2.0**53, *[1.0] * 31])
    assert entry(lambda values: inner(values))(numbers) == 2.0**53
    assert loop(total)(numbers) > 2.0**53


def test_without_a_place_to_keep_it_a_loop_is_compiled_all_the_same(monkeypatch):
    def nowhere(*arguments, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'total': no locator available for file 'x.py'")
        return njit(*arguments, **options)

    njit = numba.njit
    monkeypatch.setattr(compiled.numba, "njit", nowhere)
    assert entry(total)(np.arange(10.0)) == 45


def test_a_disk_that_is_full_stops_no_loop(monkeypatch):
    calls = []

    def full(*arguments, **options):
        def decorate(function):
            def first_time(*values):
                calls.append(values)
                if len(calls) == 1:
                    raise OSError(28, "No space left on device")
                return function(*values)

            return first_time

        return decorate

    monkeypatch.setattr(compiled.numba, "njit", full)
    assert entry(total)(np.arange(10.0)) == 45
    assert len(calls) == 2


def spin(flag):
    count = 0
    while flag[0] == 0 and count < 1 << 33:
        count += 1
    return count


def test_other_threads_go_on_meanwhile():
    waits, flag = entry(spin), np.zeros(1, np.int64)
    flag[0] = 1
    assert waits(flag) == 0  # compiled
    flag[0] = 0
    thread = threading.Thread(target=waits, args=(flag,))
    thread.start()
    time.sleep(0.01)
    flag[0] = 1
    thread.join()


@pytest.mark.parametrize("decorate", [loop, exact_loop, entry])
def test_each_takes_numbers_of_any_type(decorate):
    twice = decorate(lambda number: 2 * number)
    assert twice(3) == 6
    assert twice(0.5) == 1
