"""Data parallelism over CPU threads: each thread runs PyTorch single-threaded on its own slice of the rows.

PyTorch splits every single operation over its threads. On blocks that fit a cache an operation is so short that waiting
for the slowest thread takes longer than the operation, and far longer when another process uses a core.
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
# Numbers of scores of 64-dimensional vectors and codes. With fewer than _MIN_POOL_SCORES the calling thread is faster
# than a pool thread. Several pool threads need _SCORES_PER_THREAD each (some milliseconds of work), or handing over the
# GIL costs more than it saves.
_MIN_POOL_SCORES = 1 << 20
_SCORES_PER_THREAD = 1 << 22

# Guards torch.set_num_threads, which is a setting of the process.
_num_threads_lock = Lock()


def useful_threads(num_scores: int, dim: int) -> int:
    """Return the number of pool threads that are worth using to compute `num_scores` scores.

    A score compares one vector with one code, both of `dim` dimensions. Its time is assumed to be proportional to
    64 + dim. If all scores take less time than waking a pool thread, return 0: compute them in the calling thread. The
    result can be larger than PyTorch's number of threads; `map_rows` applies that limit.
    """
    num_scores = num_scores * (64 + dim) // 128
    return max(num_scores // _SCORES_PER_THREAD, int(num_scores >= _MIN_POOL_SCORES))


def map_rows(function: Callable[[slice], T], rows: int, max_threads: int, device: torch.device) -> list[T]:
    """Split `rows` rows into consecutive slices, call `function` on each, and return the results in order.

    The calls run without gradients. On a CPU they run in parallel, each on one thread, and the number of slices is
    max(1, min(`rows`, `max_threads`, PyTorch's number of threads)). On other devices there is one slice. Results that
    depend on the split, such as sums, therefore depend on the number of threads.
    """
    num_slices = max(1, min(_num_threads(device), max_threads, rows))
    slices = [slice(rows * i // num_slices, rows * (i + 1) // num_slices) for i in range(num_slices)]
    return map_items(_without_gradients(function), slices, device)


def map_items(function: Callable[[S], T], items: Iterable[S], device: torch.device) -> list[T]:
    """Call `function` on every item; return the results in order.

    On a CPU the calls run in parallel, each on a single thread, so that the results do not depend on the number of
    threads. A pool thread does not inherit the caller's gradient mode. On other devices, or if PyTorch has one thread,
    the calls run one after another in the calling thread.
    """
    threads = _num_threads(device)
    return list(map(function, items) if threads == 1 else _pool(threads).map(function, items))


def on_one_thread(function: Callable[[], T], device: torch.device) -> T:
    """Return the result of `function`, called without gradients and, on a CPU, on a single thread.

    For short operations: on all threads they take tens of times as long when another process uses a core, and leave
    PyTorch's threads spinning for some milliseconds on cores that others need.
    """
    threads = _num_threads(device)
    function = _without_gradients(function)
    return function() if threads == 1 else _pool(threads).submit(function).result()


def single_threaded_pool(size: int) -> ThreadPoolExecutor:
    """Create a pool of `size` threads, in each of which PyTorch runs single-threaded."""
    # torch.set_num_threads also sets the number for threads that start later, so the caller's number is restored once
    # all threads of the pool have set theirs.
    with _num_threads_lock:
        caller_threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(size, "vqtool")
        all_started = Barrier(size + 1)

        def set_single_thread() -> None:
            torch.get_num_threads()  # the first call in a thread sets its number, and would undo an earlier set
            torch.set_num_threads(1)
            all_started.wait()

        try:
            started = [pool.submit(set_single_thread) for _ in range(size)]
            all_started.wait()
            for future in started:
                future.result()
        except BaseException:  # for example no memory for a thread: those that started would wait forever
            all_started.abort()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(caller_threads)
        return pool


_pool = lru_cache(maxsize=1)(single_threaded_pool)


def _num_threads(device: torch.device) -> int:
    return torch.get_num_threads() if device.type == "cpu" else 1


def _without_gradients(function: Callable[P, T]) -> Callable[P, T]:
    # Grad mode is a setting of each thread, so it must be set inside the pool thread.
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.no_grad():
            return function(*args, **kwargs)

    return run


def _after_fork() -> None:
    """Discard the pool and the lock in a forked child, which has neither the pool's threads nor the lock's owner."""
    global _num_threads_lock
    _num_threads_lock = Lock()
    _pool.cache_clear()


os.register_at_fork(after_in_child=_after_fork)
