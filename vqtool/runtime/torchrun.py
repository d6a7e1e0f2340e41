"""What torchrun, or who else starts several processes of one job, tells each of them."""

import os
from collections.abc import Mapping
from typing import NamedTuple


class RankInfo(NamedTuple):
    """A process among those of its job."""

    rank: int
    """Its number, counted from 0."""
    size: int
    """How many there are."""
    local_rank: int | None
    """Its number on its machine; None where that is not said."""


def rank_info(environment: Mapping[str, str] = os.environ) -> RankInfo:
    """Where this process is; the only one, where nothing is said."""
    rank, size, local = (_number(environment.get(name, "")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank is None or size is None:
        return RankInfo(0, 1, None)
    return RankInfo(rank, size, local)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
