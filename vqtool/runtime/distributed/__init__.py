"""Several processes that train one model: what they add up, and what they agree on. Alone, nothing of it happens.

torch.distributed is the engine. Whoever calls a function here that communicates calls it in all processes alike.
"""

from vqtool.runtime.distributed.batch_shard import Share, planned, share_of
from vqtool.runtime.distributed.collectives import add_up, gather_rows, largest, smallest
from vqtool.runtime.distributed.process_group import from_first, joined, wait_for_all
from vqtool.runtime.distributed.ranks import is_first, rank, world_size
from vqtool.runtime.distributed.votes import any_process, voting

__all__ = [
    "Share",
    "add_up",
    "any_process",
    "from_first",
    "gather_rows",
    "is_first",
    "joined",
    "largest",
    "planned",
    "rank",
    "share_of",
    "smallest",
    "voting",
    "wait_for_all",
    "world_size",
]
