"""A question that all processes answer alike, at the same moments: did anybody ask to stop?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vqtool.runtime.distributed.ranks import group_for, world_size

# The vote under way: what will hold its result, and what to wait for. None: no vote is.
_under_way: list[tuple[Tensor, Any] | None] = []


@contextmanager
def async_any_rank() -> Iterator[None]:
    """Within, `any_rank` asks all processes, which call it equally often."""
    if world_size() == 1:
        yield
        return
    _under_way.append(None)
    try:
        yield
        _result()  # else a process that leaves would cut the others short
    finally:
        _under_way.pop()


@contextmanager
def local_any_rank() -> Iterator[None]:
    """Within, `any_rank` is about this process alone: for what not all of them do."""
    before = _under_way[:]
    _under_way.clear()
    try:
        yield
    finally:
        _under_way[:] = before


def any_rank(answer: int) -> int:
    """The largest answer of any process, at the last call before this one: so nobody waits for the slowest.

    Outside `async_any_rank`, the answer of this process.
    """
    if not _under_way:
        return answer
    before = _result()
    vote = torch.tensor(answer)
    _under_way[-1] = (vote, dist.all_reduce(vote, dist.ReduceOp.MAX, group=group_for(vote), async_op=True))
    return before


def _result() -> int:
    if _under_way[-1] is None:
        return 0
    vote, work = _under_way[-1]
    _under_way[-1] = None
    work.wait()
    return int(vote)
