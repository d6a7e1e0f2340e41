"""Threads: slices partition the rows, results are in order, and the user's number of threads is unchanged."""

import multiprocessing
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quantizers import brute_force, random_normal
from vqtool.quantizers import nearest_codes
from vqtool.runtime.threads import map_rows, on_one_thread, single_threaded_pool, useful_threads

CPU = torch.device("cpu")
# A test that waits longer has failed.
TIMEOUT_SECONDS = 60


@pytest.fixture
def set_num_threads():
    """Function that sets the number of PyTorch's threads; it is restored after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def identity(rows):
    return rows


def needs_fork(test):
    """Mark a test that forks: skip it without fork, and ignore the warning about it."""
    skipped = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
    # Python 3.12 and later warn about fork in a process with threads.
    return skipped(pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")(test))


def fork(function):
    """Start a forked child process that calls `function`."""
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    return child


def exits_with_0(child):
    """Wait for a child process, kill it after the timeout, and return whether its exit code was 0."""
    child.join(TIMEOUT_SECONDS)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode == 0


def run_in_new_thread(function):
    """Return the result of `function`, called in a new thread."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    return results[0]


@pytest.mark.parametrize("threads", [1, 3])
def test_on_one_thread_runs_single_threaded(set_num_threads, threads):
    set_num_threads(threads)
    assert on_one_thread(torch.get_num_threads, CPU) == 1
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [1, 3])
def test_no_gradients_are_recorded_for_any_number_of_threads(set_num_threads, threads):
    set_num_threads(threads)
    weight = torch.ones(8, requires_grad=True)
    assert not on_one_thread(lambda: weight * 2, CPU).requires_grad
    assert not any(part.requires_grad for part in map_rows(lambda rows: weight[rows] * 2, 8, 8, CPU))
    assert torch.is_grad_enabled()


def test_pool_thread_is_used_only_on_a_cpu_with_several_threads(set_num_threads):
    here = threading.get_ident()
    set_num_threads(3)
    assert on_one_thread(threading.get_ident, CPU) != here
    assert on_one_thread(threading.get_ident, torch.device("meta")) == here
    set_num_threads(1)
    assert on_one_thread(threading.get_ident, CPU) == here


@pytest.mark.parametrize(
    ("scores", "dim", "threads"),
    [
        (2**20 - 1, 64, 0),
        (2**20, 64, 1),
        (2**23 - 1, 64, 1),
        (2**23, 64, 2),
        (2**23, 63, 1),
        (2**23, 192, 4),
        (2**23, 1, 1),
        (2**25, 64, 8),
    ],
)
def test_useful_threads_by_scores_and_dimensions(scores, dim, threads):
    assert useful_threads(scores, dim) == threads


def fail_after_first_slice(rows):
    if rows.start > 0:
        raise KeyError("worker")
    return rows


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_slices_partition_the_rows_in_order_and_evenly(set_num_threads, threads):
    set_num_threads(threads)

    @settings(deadline=None, max_examples=60)
    @given(rows=st.integers(0, 300), max_threads=st.integers(0, 8))
    def covered(rows, max_threads):
        slices = map_rows(identity, rows, max_threads, CPU)
        assert [row for part in slices for row in range(part.start, part.stop)] == list(range(rows))
        assert len(slices) == max(1, min(threads, max_threads, rows))
        sizes = {part.stop - part.start for part in slices}
        assert max(sizes) - min(sizes) <= 1

    covered()


def test_other_devices_have_one_slice_in_the_calling_thread(two_threads):
    results = map_rows(lambda rows: (rows, threading.get_ident()), 10, 9, torch.device("meta"))
    assert results == [(slice(0, 10), threading.get_ident())]


@pytest.mark.parametrize("max_threads", [0, 1])
def test_single_slice_runs_single_threaded(two_threads, max_threads):
    assert map_rows(lambda rows: (rows, torch.get_num_threads()), 10, max_threads, CPU) == [(slice(0, 10), 1)]


def test_slices_run_at_the_same_time(two_threads):
    both = threading.Barrier(2)
    numbers = map_rows(lambda rows: both.wait(TIMEOUT_SECONDS), 10, 9, CPU)
    assert sorted(numbers) == [0, 1]


def test_results_are_in_order_even_if_the_first_slice_ends_last(two_threads):
    second_is_done = threading.Event()

    def function(rows):
        if rows.start > 0:
            second_is_done.set()
        assert second_is_done.wait(TIMEOUT_SECONDS)
        return rows

    assert map_rows(function, 10, 9, CPU) == [slice(0, 5), slice(5, 10)]


def test_no_gradients_are_recorded_in_pool_threads(two_threads):
    weight = torch.ones(10, requires_grad=True)
    with torch.enable_grad():
        parts = map_rows(lambda rows: weight[rows] * 2, 10, 9, CPU)
        assert torch.is_grad_enabled()
    assert len(parts) == 2
    assert not any(part.requires_grad for part in parts)


def test_each_pool_thread_runs_single_threaded(two_threads):
    assert map_rows(lambda rows: torch.get_num_threads(), 10, 9, CPU) == [1, 1]


def test_nested_map_rows_runs_in_the_same_thread(two_threads):
    def nested(rows):
        assert torch.get_num_threads() == 1  # otherwise the nested call would wait for its own thread
        return map_rows(lambda inner: (inner, threading.get_ident()), 6, 9, CPU), threading.get_ident()

    for inner, outer in map_rows(nested, 10, 9, CPU):
        assert inner == [(slice(0, 6), outer)]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_number_of_threads_is_unchanged_in_the_caller_and_in_new_threads(set_num_threads, threads):
    set_num_threads(threads)
    map_rows(identity, 10, 9, CPU)
    assert torch.get_num_threads() == threads
    assert run_in_new_thread(torch.get_num_threads) == threads


def test_pool_follows_a_changed_number_of_threads(set_num_threads):
    for threads in (2, 3, 1, 2):
        set_num_threads(threads)
        assert len(map_rows(identity, 10, 9, CPU)) == threads
        assert torch.get_num_threads() == threads


def test_map_rows_works_in_a_users_thread(two_threads):
    map_rows(identity, 10, 9, CPU)
    assert run_in_new_thread(lambda: map_rows(identity, 10, 9, CPU)) == [slice(0, 5), slice(5, 10)]


@pytest.mark.parametrize("threads", [2, 3])
def test_error_in_a_pool_thread_is_raised_and_the_pool_stays_usable(set_num_threads, threads):
    set_num_threads(threads)
    with pytest.raises(KeyError, match="worker"):
        map_rows(fail_after_first_slice, 10, 9, CPU)
    assert torch.get_num_threads() == threads
    assert len(map_rows(identity, 10, 9, CPU)) == threads


def test_single_threaded_pool_has_the_requested_size(two_threads):
    together = threading.Barrier(3)

    def function():
        together.wait(TIMEOUT_SECONDS)
        return threading.get_ident(), torch.get_num_threads()

    with single_threaded_pool(3) as pool:
        results = [future.result(TIMEOUT_SECONDS) for future in [pool.submit(function) for _ in range(3)]]
    assert len(dict(results)) == 3
    assert {threads for _, threads in results} == {1}
    assert torch.get_num_threads() == run_in_new_thread(torch.get_num_threads) == 2


def test_failed_thread_start_is_raised_and_leaves_no_threads(monkeypatch, two_threads):
    start, before = threading.Thread.start, threading.active_count()
    remaining = [1]

    def start_if_any_remaining(thread):
        if remaining[0] == 0:
            raise RuntimeError("can't start new thread")
        remaining[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_any_remaining)
    with pytest.raises(RuntimeError, match="can't start"):
        single_threaded_pool(2)
    monkeypatch.undo()
    assert threading.active_count() == before
    assert torch.get_num_threads() == run_in_new_thread(torch.get_num_threads) == 2


@needs_fork
def test_pool_starts_in_a_child_forked_while_another_pool_starts(monkeypatch):
    children, get_num_threads = [], torch.get_num_threads

    def start() -> None:
        single_threaded_pool(1).shutdown()

    def fork_in_first_call() -> int:
        """Fork where the number of threads is read, while the lock that guards it is held."""
        monkeypatch.undo()
        children.append(fork(start))
        return get_num_threads()

    monkeypatch.setattr(torch, "get_num_threads", fork_in_first_call)
    start()
    (child,) = children
    assert exits_with_0(child)


@needs_fork
def test_search_works_in_a_child_forked_after_a_search(two_threads):
    vectors, codes = random_normal(0, 40, 6), random_normal(1, 200, 6)
    # 24,000 vectors: enough for two threads.
    vectors, expected = vectors.repeat(600, 1), brute_force(vectors, codes).repeat(600)
    assert torch.equal(nearest_codes(vectors, codes), expected)

    def search_again():
        assert torch.get_num_threads() == 2
        assert torch.equal(nearest_codes(vectors, codes), expected)

    assert exits_with_0(fork(search_again))
    assert torch.equal(nearest_codes(vectors, codes), expected)
