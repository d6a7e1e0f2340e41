"""BatchShard on one process; test_collectives.py has several ranks."""

import pytest
import torch

from vqtool.runtime.distributed import BatchShard, fixed_global_batch, local_shard


@pytest.mark.parametrize("total", [0, 1, 2, 7, 64, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 16])
def test_shards_of_all_ranks_partition_the_batch_evenly(
    total: int, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = []
    for rank in range(world_size):
        monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.world_size", lambda: world_size)
        monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.rank", lambda rank=rank: rank)
        shards.append(BatchShard.for_rank(total))
    assert [row for shard in shards for row in range(shard.start, shard.start + shard.samples)] == list(range(total))
    assert max(shard.samples for shard in shards) - min(shard.samples for shard in shards) <= 1
    assert all(shard.total == total and shard.is_sharded == (world_size > 1) for shard in shards)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (3, 0), (4, 0), (5, 1), (6, 2), (7, 3), (9, 3)])
def test_count_in_first(count: int, expected: int) -> None:
    assert BatchShard(start=4, samples=3, total=9, is_sharded=True).count_in_first(count) == expected


def test_scaled_multiplies_all_counts() -> None:
    assert BatchShard(start=4, samples=3, total=9, is_sharded=True).scaled(5) == BatchShard(20, 15, 45, True)


def test_sum_and_mean_of_one_process() -> None:
    shard = local_shard(6, torch.device("cpu"))
    assert shard == BatchShard(0, 6, 6, False)
    values = torch.randn(6, 4, 3, dtype=torch.float64)
    assert shard.sum(values) is values
    torch.testing.assert_close(shard.mean(values), values.mean(), rtol=1e-14, atol=0)
    assert float(BatchShard.unsharded(0).mean(torch.zeros(0, 3))) == 0


def test_fixed_global_batch_has_no_effect_on_one_process() -> None:
    with fixed_global_batch(100):
        assert local_shard(6, torch.device("cpu")) == BatchShard.unsharded(6)
