"""Shares of a batch, as one process can see them."""

import pytest
import torch

from vqtool.runtime.distributed import BatchShard, fixed_global_batch, local_shard


@pytest.mark.parametrize("total", [0, 1, 2, 7, 64, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_own_shares_make_up_the_batch(total: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for number in range(size):
        monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.world_size", lambda: size)
        monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.rank", lambda number=number: number)
        shares.append(BatchShard.for_rank(total))
    assert [row for shard in shares for row in range(shard.start, shard.start + shard.samples)] == list(range(total))
    assert max(shard.samples for shard in shares) - min(shard.samples for shard in shares) <= 1
    assert all(shard.total == total and shard.is_sharded == (size > 1) for shard in shares)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (3, 0), (4, 0), (5, 1), (6, 2), (7, 3), (9, 3)])
def test_how_many_of_the_first_are_among_these(count: int, expected: int) -> None:
    assert BatchShard(start=4, samples=3, total=9, is_sharded=True).count_in_first(count) == expected


def test_parts_of_samples_are_shared_as_they_are() -> None:
    assert BatchShard(start=4, samples=3, total=9, is_sharded=True).scaled(5) == BatchShard(20, 15, 45, True)


def test_alone_sums_and_means_are_plain_ones() -> None:
    shard = local_shard(6, torch.device("cpu"))
    assert shard == BatchShard(0, 6, 6, False)
    values = torch.randn(6, 4, 3, dtype=torch.float64)
    assert shard.sum(values) is values
    torch.testing.assert_close(shard.mean(values), values.mean(), rtol=1e-14, atol=0)
    assert float(BatchShard.unsharded(0).mean(torch.zeros(0, 3))) == 0


def test_alone_nothing_is_planned() -> None:
    with fixed_global_batch(100):
        assert local_shard(6, torch.device("cpu")) == BatchShard.unsharded(6)
