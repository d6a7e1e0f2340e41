"""Rank and world size from the environment of torchrun, read without importing torch."""

import os
from collections.abc import Mapping
from typing import NamedTuple


class RankInfo(NamedTuple):
    """Position of a process in a job of several processes."""

    rank: int
    """Number of the process, from 0."""
    world_size: int
    """Number of processes of the job."""
    local_rank: int | None
    """Number of the process on its machine, from 0; None if the environment does not contain it."""


def rank_info(environment: Mapping[str, str] = os.environ) -> RankInfo:
    """Read RANK, WORLD_SIZE and LOCAL_RANK; without numbers in the first two, return rank 0 of 1, local rank None."""
    rank, world_size, local_rank = (
        int(text) if (text := environment.get(name, "")).isdecimal() else None
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    )
    if rank is None or world_size is None:
        return RankInfo(0, 1, None)
    return RankInfo(rank, world_size, local_rank)
