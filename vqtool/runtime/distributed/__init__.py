"""Several processes that train one model: what they add up, and what they agree on. Alone, nothing of it happens.

torch.distributed is the engine. Whoever calls a function here that communicates calls it in all processes alike.
"""

from vqtool.runtime.distributed.batch_shard import BatchShard, fixed_global_batch, local_shard
from vqtool.runtime.distributed.collectives import all_gather_rows, all_reduce_max, all_reduce_min, all_reduce_sum
from vqtool.runtime.distributed.process_group import barrier, on_rank0, process_group
from vqtool.runtime.distributed.ranks import is_rank0, rank, world_size
from vqtool.runtime.distributed.votes import any_rank, async_any_rank

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
