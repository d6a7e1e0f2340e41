"""Rows shared out among threads, each of which walks its own.

PyTorch splits every operation over its threads. Over blocks that fit a cache an operation is so short that waiting for
the last thread costs more than the work, and far more where another process has the core.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier, Lock
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
_lock = Lock()
# Scores of vectors and codes of 64 dimensions that are worth a thread of their own instead of the caller's, and those
# that are worth another: some milliseconds' work. With less to do, threads that hand Python's lock to each other take
# longer than one.
_WAKE = 1 << 20
_THREAD = 1 << 22


def useful_threads(scores: int, dim: int) -> int:
    """How many threads so many scores of vectors and codes of `dim` dimensions are worth; 0: none is worth waking."""
    scores = scores * (64 + dim) // 128
    return max(scores // _THREAD, int(scores >= _WAKE))


def map_rows(work: Callable[[slice], T], rows: int, most: int, device: torch.device) -> list[T]:
    """The results of `work` on consecutive slices of so many `rows`, in their order.

    On a CPU there are as many slices as PyTorch has threads, `most` at the most, and none empty; anywhere else one.
    """
    threads = _threads(device)
    parts = max(1, min(threads, most, rows))
    slices = [slice(rows * part // parts, rows * (part + 1) // parts) for part in range(parts)]
    return map_items(_without_gradients(work), slices, device)


def map_items(work: Callable[[S], T], items: Iterable[S], device: torch.device) -> list[T]:
    """The results of `work` on each item, in their order.

    On a CPU each is done by one thread, so that what comes of it does not depend on how many there are.
    """
    threads = _threads(device)
    return list(map(work, items) if threads == 1 else _pool(threads).map(work, items))


def on_one_thread(work: Callable[[], T], device: torch.device) -> T:
    """The result of `work`, done by one thread on a CPU, too.

    What PyTorch's own threads do together takes tens of times as long where another process has a core, and leaves them
    spinning for some milliseconds on cores that are wanted.
    """
    threads = _threads(device)
    work = _without_gradients(work)
    return work() if threads == 1 else _pool(threads).submit(work).result()


def _threads(device: torch.device) -> int:
    return torch.get_num_threads() if device.type == "cpu" else 1


def _without_gradients(work: Callable[P, T]) -> Callable[P, T]:
    # Whether gradients are recorded is each thread's own setting.
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        with torch.no_grad():
            return work(*arguments, **options)

    return run


def single_threaded_pool(count: int) -> ThreadPoolExecutor:
    """So many threads, in each of which PyTorch works alone."""
    with _lock:  # for a moment, the number of threads of the whole process is another
        return _lone_threads(count)


def _lone_threads(count: int) -> ThreadPoolExecutor:
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "vqtool")
    barrier = Barrier(count + 1)

    def on_one_thread() -> None:
        torch.get_num_threads()  # when first asked for in a thread, it becomes the number set for threads to come
        torch.set_num_threads(1)
        barrier.wait()

    try:
        started = [pool.submit(on_one_thread) for _ in range(count)]
        barrier.wait()
        for each in started:
            each.result()
    except BaseException:  # such as that there can be no more threads: those there are would wait for the others
        barrier.abort()
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        torch.set_num_threads(threads)  # a thread's own number is that of threads yet to come, too
    return pool


_pool = lru_cache(maxsize=1)(single_threaded_pool)


def _forked() -> None:
    """A child process has the pool's memory and the lock as it was, but none of the threads."""
    global _lock
    _lock = Lock()
    _pool.cache_clear()


os.register_at_fork(after_in_child=_forked)
