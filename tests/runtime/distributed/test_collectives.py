"""Collectives, shards and the code that uses them, on three ranks."""

from typing import Any

import pytest
import torch

from tests.runtime.distributed import run_on_ranks
from vqtool.metrics.collisions import IdCounter
from vqtool.quantizers.dead_codes import HitSteps
from vqtool.quantizers.vector import VectorQuantizerSettings
from vqtool.runtime import distributed
from vqtool.runtime.distributed import BatchShard

RANKS = 3
ROWS = (2, 0, 3)  # rows of each rank


def rows_of_rank(rank: int) -> torch.Tensor:
    return torch.arange(ROWS[rank] * 2, dtype=torch.float64).reshape(-1, 2) + 100 * rank


# Functions that run on every rank; their results are checked below.


def reductions() -> dict[str, Any]:
    rank = distributed.rank()
    tensor = torch.tensor([rank, 5 - rank])
    return {
        "rank": [distributed.rank(), distributed.world_size(), distributed.is_rank0()],
        "sum": distributed.all_reduce_sum(tensor),
        "max": distributed.all_reduce_max(tensor),
        "min": distributed.all_reduce_min(tensor),
        "input": tensor,
        "rows": distributed.all_gather_rows(rows_of_rank(rank)),
        "no_rows": distributed.all_gather_rows(torch.zeros(0, 4)),
    }


def shards() -> dict[str, Any]:
    rank = distributed.rank()
    shard = distributed.local_shard(ROWS[rank], torch.device("cpu"))
    with distributed.fixed_global_batch(7):
        fixed = distributed.local_shard(BatchShard.for_rank(7).samples, torch.device("cpu"))
    partial = torch.tensor([1.0 + rank, 2.0], dtype=torch.float64, requires_grad=True)
    (shard.sum(partial) * torch.tensor([1.0 + rank, 3.0])).sum().backward()
    return {
        "shard": list(shard),
        "fixed": list(fixed),
        "gradient": partial.grad,
        "mean": shard.mean(rows_of_rank(rank)),
    }


def kmeans_init() -> dict[str, Any]:
    rank = distributed.rank()
    settings = {"codebook_size": 4, "codebook_dim": 3, "init": {"kind": "kmeans", "latents_per_code": 2}}
    quantizer = VectorQuantizerSettings.model_validate(settings).build()
    if rank:
        quantizer.init_codes = lambda preprocessed: pytest.fail("k-means ran on another rank than 0")  # type: ignore[method-assign]
    needed_init = []
    for step in range(3):
        needed_init.append(quantizer.needs_init)
        quantizer(torch.randn(3 * rank, 3, generator=torch.Generator().manual_seed(10 * step + rank)))
        quantizer.update()
    return {"needed_init": needed_init, "codes": quantizer.codes}


def any_rank() -> list[int]:
    rank = distributed.rank()
    outside = distributed.any_rank(40 + rank)
    with distributed.async_any_rank():
        inside = [distributed.any_rank(15 if (rank, call) == (1, 2) else 0) for call in range(5)]
    return [outside, *inside]


def hits_and_ids() -> dict[str, Any]:
    rank = distributed.rank()
    hit_steps, id_counter = HitSteps([4]), IdCounter()
    hit_steps.record(torch.tensor([rank]), 3 + rank, torch.tensor(True))
    hit_steps.record(torch.tensor([3]), 6 - rank, torch.tensor(True))
    hit_steps.synchronize()
    hit_steps.synchronize()
    if rank:
        id_counter.add(torch.tensor([[1, 2], [rank, 0], [1, 2]]).numpy())
    else:
        id_counter.add(torch.zeros(0, 2, dtype=torch.int64).numpy())
    id_counter.all_reduce()
    counts = id_counter.result()
    assert counts
    return {"first": hit_steps.first, "last": hit_steps.last, "rows": counts.rows, "ids": counts.ids}


FUNCTIONS = (reductions, shards, any_rank, kmeans_init, hits_and_ids)


def all_results() -> dict[str, Any]:
    return {function.__name__: function() for function in FUNCTIONS}


@pytest.fixture(scope="module")
def by_rank() -> list[dict[str, Any]]:
    """Results of every rank, by name of the function."""
    return run_on_ranks(RANKS, all_results)


def test_reductions_are_over_all_ranks_and_keep_the_input(by_rank: list[dict[str, Any]]) -> None:
    for rank, results in enumerate(by_rank):
        reduced = results["reductions"]
        assert reduced["rank"] == [rank, RANKS, rank == 0]
        assert reduced["sum"].tolist() == [3, 12]
        assert reduced["max"].tolist() == [2, 5]
        assert reduced["min"].tolist() == [0, 3]
        assert reduced["input"].tolist() == [rank, 5 - rank]


def test_all_gather_rows_is_in_rank_order(by_rank: list[dict[str, Any]]) -> None:
    expected = torch.cat([rows_of_rank(rank) for rank in range(RANKS)])
    for results in by_rank:
        assert torch.equal(results["reductions"]["rows"], expected)
        assert results["reductions"]["no_rows"].shape == (0, 4)


def test_local_shard_is_exchanged_unless_the_global_batch_is_fixed(by_rank: list[dict[str, Any]]) -> None:
    assert [results["shards"]["shard"] for results in by_rank] == [[0, 2, 5, True], [2, 0, 5, True], [2, 3, 5, True]]
    assert [results["shards"]["fixed"] for results in by_rank] == [[0, 2, 7, True], [2, 2, 7, True], [4, 3, 7, True]]


def test_gradient_of_shard_sum_is_the_sum_of_gradients_over_ranks(by_rank: list[dict[str, Any]]) -> None:
    for results in by_rank:
        assert results["shards"]["gradient"].tolist() == [1 + 2 + 3, 9]


def test_shard_mean_is_the_mean_over_the_whole_batch(by_rank: list[dict[str, Any]]) -> None:
    expected = torch.cat([rows_of_rank(rank) for rank in range(RANKS)]).mean()
    for results in by_rank:
        torch.testing.assert_close(results["shards"]["mean"], expected, rtol=1e-14, atol=0)


def test_kmeans_init_runs_on_rank_0_and_gives_equal_codes(by_rank: list[dict[str, Any]]) -> None:
    for results in by_rank:
        assert results["kmeans_init"]["needed_init"] == [True, False, False]
        assert torch.equal(results["kmeans_init"]["codes"], by_rank[0]["kmeans_init"]["codes"])


def test_any_rank_returns_the_maximum_of_the_previous_call(by_rank: list[dict[str, Any]]) -> None:
    assert [results["any_rank"] for results in by_rank] == [[40 + rank, 0, 0, 0, 15, 0] for rank in range(RANKS)]


def test_hit_steps_are_the_minimum_and_maximum_over_ranks(by_rank: list[dict[str, Any]]) -> None:
    for results in by_rank:
        assert results["hits_and_ids"]["first"].tolist() == [3, 4, 5, 4]
        assert results["hits_and_ids"]["last"].tolist() == [3, 4, 5, 6]


def test_distinct_ids_are_counted_over_all_ranks(by_rank: list[dict[str, Any]]) -> None:
    for results in by_rank:
        assert (results["hits_and_ids"]["rows"], results["hits_and_ids"]["ids"]) == (6, 3)
