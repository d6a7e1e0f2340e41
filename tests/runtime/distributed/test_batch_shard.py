"""Shares of a batch, as one process can see them."""

import pytest
import torch

from vqtool.runtime.distributed import Share, planned, share_of


@pytest.mark.parametrize("total", [0, 1, 2, 7, 64, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_own_shares_make_up_the_batch(total: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for number in range(size):
        monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.world_size", lambda: size)
        monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.rank", lambda number=number: number)
        shares.append(Share.own(total))
    assert [row for share in shares for row in range(share.start, share.start + share.samples)] == list(range(total))
    assert max(share.samples for share in shares) - min(share.samples for share in shares) <= 1
    assert all(share.total == total and share.others == (size > 1) for share in shares)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (3, 0), (4, 0), (5, 1), (6, 2), (7, 3), (9, 3)])
def test_how_many_of_the_first_are_among_these(count: int, expected: int) -> None:
    assert Share(start=4, samples=3, total=9, others=True).first(count) == expected


def test_parts_of_samples_are_shared_as_they_are() -> None:
    assert Share(start=4, samples=3, total=9, others=True).times(5) == Share(20, 15, 45, True)


def test_alone_sums_and_means_are_plain_ones() -> None:
    share = share_of(6, torch.device("cpu"))
    assert share == Share(0, 6, 6, False)
    values = torch.randn(6, 4, 3, dtype=torch.float64)
    assert share.sum(values) is values
    torch.testing.assert_close(share.mean(values), values.mean(), rtol=1e-14, atol=0)
    assert float(Share.alone(0).mean(torch.zeros(0, 3))) == 0


def test_alone_nothing_is_planned() -> None:
    with planned(100):
        assert share_of(6, torch.device("cpu")) == Share.alone(6)
