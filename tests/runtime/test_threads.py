"""Rows over threads: every row once, results in order, and the user's own threads left as they are."""

import multiprocessing
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vqtool.runtime.threads
from tests.quantizers import brute_force, random_normal
from vqtool.quantizers import nearest_codes
from vqtool.runtime.threads import map_rows, on_one_thread, single_threaded_pool, useful_threads

CPU = torch.device("cpu")
# Long enough for any machine; a test that waits so long has failed.
PATIENCE = 60


@pytest.fixture
def thread_count():
    """Sets the number of PyTorch's threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def itself(rows):
    return rows


def forks(test):
    """Marks a test that forks."""
    skipped = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
    # From Python 3.12 on a fork beside threads warns: its child has none of them.
    return skipped(pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")(test))


def forked(work):
    """A child process that has begun to do `work`."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def ended_well(child):
    """Whether a child process ends in time, and without an error; it has ended, either way."""
    child.join(PATIENCE)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode == 0


def in_a_thread(work):
    """The result of `work` in a thread that starts now."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(PATIENCE)
    return found[0]


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_done_alone_is_done_by_one_thread(thread_count, threads):
    thread_count(threads)
    assert on_one_thread(torch.get_num_threads, CPU) == 1
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [1, 3])
def test_no_gradient_is_recorded_however_many_threads_there_are(thread_count, threads):
    thread_count(threads)
    weight = torch.ones(8, requires_grad=True)
    assert not on_one_thread(lambda: weight * 2, CPU).requires_grad
    assert not any(part.requires_grad for part in map_rows(lambda rows: weight[rows] * 2, 8, 8, CPU))
    assert torch.is_grad_enabled()


def test_only_where_pytorch_has_one_thread_is_that_of_the_caller_alone(thread_count):
    here = threading.get_ident()
    thread_count(3)
    assert on_one_thread(threading.get_ident, CPU) != here
    assert on_one_thread(threading.get_ident, torch.device("meta")) == here
    thread_count(1)
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
def test_more_scores_and_dimensions_are_worth_more_threads(scores, dim, threads):
    assert useful_threads(scores, dim) == threads


def fail_behind_the_first(rows):
    if rows.start > 0:
        raise KeyError("worker")
    return rows


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_slices_cover_the_rows_once_and_in_order(thread_count, threads):
    thread_count(threads)

    @settings(deadline=None, max_examples=60)
    @given(rows=st.integers(0, 300), most=st.integers(0, 8))
    def covered(rows, most):
        slices = map_rows(itself, rows, most, CPU)
        assert [row for part in slices for row in range(part.start, part.stop)] == list(range(rows))
        assert len(slices) == max(1, min(threads, most, rows))
        sizes = {part.stop - part.start for part in slices}
        assert max(sizes) - min(sizes) <= 1

    covered()


def test_another_device_has_one_slice_in_the_callers_own_thread(two_threads):
    found = map_rows(lambda rows: (rows, threading.get_ident()), 10, 9, torch.device("meta"))
    assert found == [(slice(0, 10), threading.get_ident())]


@pytest.mark.parametrize("most", [0, 1])
def test_one_slice_is_worked_on_by_a_thread_alone(two_threads, most):
    assert map_rows(lambda rows: (rows, torch.get_num_threads()), 10, most, CPU) == [(slice(0, 10), 1)]


def test_slices_are_worked_on_at_the_same_time(two_threads):
    both = threading.Barrier(2)
    numbers = map_rows(lambda rows: both.wait(PATIENCE), 10, 9, CPU)
    assert sorted(numbers) == [0, 1]


def test_results_are_in_order_where_the_first_is_the_last_to_end(two_threads):
    second_is_done = threading.Event()

    def work(rows):
        if rows.start > 0:
            second_is_done.set()
        assert second_is_done.wait(PATIENCE)
        return rows

    assert map_rows(work, 10, 9, CPU) == [slice(0, 5), slice(5, 10)]


def test_no_gradients_are_recorded_in_threads(two_threads):
    weight = torch.ones(10, requires_grad=True)
    with torch.enable_grad():
        parts = map_rows(lambda rows: weight[rows] * 2, 10, 9, CPU)
        assert torch.is_grad_enabled()
    assert len(parts) == 2
    assert not any(part.requires_grad for part in parts)


def test_each_thread_works_alone(two_threads):
    assert map_rows(lambda rows: torch.get_num_threads(), 10, 9, CPU) == [1, 1]


def test_rows_shared_out_within_a_thread_stay_there(two_threads):
    def nested(rows):
        assert torch.get_num_threads() == 1  # or else this would wait for ever
        return map_rows(lambda inner: (inner, threading.get_ident()), 6, 9, CPU), threading.get_ident()

    for inner, outer in map_rows(nested, 10, 9, CPU):
        assert inner == [(slice(0, 6), outer)]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_users_number_of_threads_stays_also_for_threads_yet_to_come(thread_count, threads):
    thread_count(threads)
    map_rows(itself, 10, 9, CPU)
    assert torch.get_num_threads() == threads
    assert in_a_thread(torch.get_num_threads) == threads


def test_another_number_of_threads_is_followed(thread_count):
    for threads in (2, 3, 1, 2):
        thread_count(threads)
        assert len(map_rows(itself, 10, 9, CPU)) == threads
        assert torch.get_num_threads() == threads


def test_threads_of_the_users_share_out_rows_too(two_threads):
    map_rows(itself, 10, 9, CPU)
    assert in_a_thread(lambda: map_rows(itself, 10, 9, CPU)) == [slice(0, 5), slice(5, 10)]


@pytest.mark.parametrize("threads", [2, 3])
def test_an_error_in_a_thread_reaches_the_caller_and_the_next_call_works(thread_count, threads):
    thread_count(threads)
    with pytest.raises(KeyError, match="worker"):
        map_rows(fail_behind_the_first, 10, 9, CPU)
    assert torch.get_num_threads() == threads
    assert len(map_rows(itself, 10, 9, CPU)) == threads


def test_threads_of_ones_own_are_as_many_as_asked_for_and_each_alone(two_threads):
    together = threading.Barrier(3)

    def work():
        together.wait(PATIENCE)
        return threading.get_ident(), torch.get_num_threads()

    with single_threaded_pool(3) as pool:
        found = [each.result(PATIENCE) for each in [pool.submit(work) for _ in range(3)]]
    assert len(dict(found)) == 3
    assert {threads for _, threads in found} == {1}
    assert torch.get_num_threads() == in_a_thread(torch.get_num_threads) == 2


def test_where_there_can_be_no_more_threads_the_call_fails_and_leaves_none_behind(monkeypatch, two_threads):
    start, before = threading.Thread.start, threading.active_count()
    left = [1]

    def scarce(thread):
        if left[0] == 0:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    with pytest.raises(RuntimeError, match="can't start"):
        single_threaded_pool(2)
    monkeypatch.undo()
    assert threading.active_count() == before
    assert torch.get_num_threads() == in_a_thread(torch.get_num_threads) == 2


@forks
def test_threads_start_in_a_child_process_that_was_forked_while_others_started():
    def start() -> None:
        single_threaded_pool(1).shutdown()

    with vqtool.runtime.threads._num_threads_lock:
        child = forked(start)
    assert ended_well(child)


@forks
def test_a_search_works_in_a_child_process_that_was_forked_after_one(two_threads, monkeypatch):
    monkeypatch.setattr("vqtool.runtime.threads._SCORES_PER_THREAD", 1)
    vectors, codes = random_normal(0, 40, 6), random_normal(1, 200, 6)
    expected = brute_force(vectors, codes)
    assert torch.equal(nearest_codes(vectors, codes), expected)

    def search_again():
        assert torch.get_num_threads() == 2
        assert torch.equal(nearest_codes(vectors, codes), expected)

    assert ended_well(forked(search_again))
    assert torch.equal(nearest_codes(vectors, codes), expected)
