"""Training on several ranks with torch.distributed: collectives, shards of a batch, and the process group.

Functions that communicate must be called by all ranks in the same order.
"""

from vqtool.runtime.distributed.batch_shard import BatchShard, fixed_global_batch, local_shard
from vqtool.runtime.distributed.collectives import (
    all_gather_rows,
    all_reduce_max,
    all_reduce_min,
    all_reduce_sum,
    any_rank,
    async_any_rank,
    is_rank0,
    rank,
    world_size,
)
from vqtool.runtime.distributed.process_group import barrier, on_rank0, process_group

__all__ = [
    "BatchShard",
    "all_gather_rows",
    "all_reduce_max",
    "all_reduce_min",
    "all_reduce_sum",
    "any_rank",
    "async_any_rank",
    "barrier",
    "fixed_global_batch",
    "is_rank0",
    "local_shard",
    "on_rank0",
    "process_group",
    "rank",
    "world_size",
]
