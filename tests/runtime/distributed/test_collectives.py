"""What three real processes add up, put together and agree on."""

from typing import Any

import pytest
import torch

from tests.runtime.distributed import in_processes
from vqtool.errors import Stopped
from vqtool.metrics.collisions import IdCounter
from vqtool.quantizers.dead_codes import HitSteps
from vqtool.quantizers.vector import VectorQuantizerSettings
from vqtool.runtime import distributed
from vqtool.runtime.distributed import BatchShard
from vqtool.runtime.distributed.process_group import Rank0FailedError

SIZE = 3
ROWS = (2, 0, 3)  # of each process


def rows_of(rank: int) -> torch.Tensor:
    return torch.arange(ROWS[rank] * 2, dtype=torch.float64).reshape(-1, 2) + 100 * rank


def reduced_everywhere() -> dict[str, Any]:
    rank = distributed.rank()
    own = torch.tensor([rank, 5 - rank])
    return {
        "place": [distributed.rank(), distributed.world_size(), distributed.is_rank0()],
        "sum": distributed.all_reduce_sum(own),
        "largest": distributed.all_reduce_max(own),
        "smallest": distributed.all_reduce_min(own),
        "own": own,
        "rows": distributed.all_gather_rows(rows_of(rank)),
        "nothing": distributed.all_gather_rows(torch.zeros(0, 4)),
    }


def shared() -> dict[str, Any]:
    rank = distributed.rank()
    shard = distributed.local_shard(ROWS[rank], torch.device("cpu"))
    with distributed.fixed_global_batch(7):
        plan = distributed.local_shard(BatchShard.for_rank(7).samples, torch.device("cpu"))
    part = torch.tensor([1.0 + rank, 2.0], dtype=torch.float64, requires_grad=True)
    (shard.sum(part) * torch.tensor([1.0 + rank, 3.0])).sum().backward()
    return {"share": list(shard), "plan": list(plan), "gradient": part.grad, "mean": shard.mean(rows_of(rank))}


def of_first() -> dict[str, Any]:
    rank = distributed.rank()
    calls = []

    def refuse() -> None:
        raise ValueError("no")

    made = distributed.on_rank0(lambda: calls.append(rank) or {"a": [1, "b", None], "t": torch.arange(3)})
    try:
        distributed.on_rank0(refuse)
        refused = ""
    except (ValueError, Rank0FailedError) as error:
        refused = f"{type(error).__name__}: {error}"
    return {"made": made, "calls": calls, "refused": refused}


def stopped() -> dict[str, Any]:
    def stop() -> None:
        distributed.any_rank(2)  # of this process alone, for the others do not ask
        raise Stopped(15, "stopped by SIGTERM")

    with distributed.async_any_rank():
        before = distributed.any_rank(0)
        try:
            distributed.on_rank0(stop)
            told = ""
        except Stopped as error:
            told = f"{error.signal}: {error}"
        after = [distributed.any_rank(0), distributed.any_rank(0)]
    return {"told": told, "votes": [before, *after]}


def started() -> dict[str, Any]:
    """Codes by k-means of the first alone."""
    rank = distributed.rank()
    settings = {"codebook_size": 4, "codebook_dim": 3, "init": {"kind": "kmeans", "latents_per_code": 2}}
    quantizer = VectorQuantizerSettings.model_validate(settings).build()
    if rank:
        quantizer.init_codes = lambda preprocessed: pytest.fail("the first alone starts")  # type: ignore[method-assign]
    waited = []
    for step in range(3):
        waited.append(quantizer.needs_init)
        quantizer(torch.randn(3 * rank, 3, generator=torch.Generator().manual_seed(10 * step + rank)))
        quantizer.update()
    return {"waited": waited, "codes": quantizer.codes}


def votes() -> list[int]:
    rank = distributed.rank()
    outside = distributed.any_rank(40 + rank)
    with distributed.async_any_rank():
        within = [distributed.any_rank(15 if (rank, turn) == (1, 2) else 0) for turn in range(5)]
    return [outside, *within]


def counted() -> dict[str, Any]:
    rank = distributed.rank()
    hit_steps, ids = HitSteps([4]), IdCounter()
    hit_steps.record(torch.tensor([rank]), 3 + rank, torch.tensor(True))
    hit_steps.record(torch.tensor([3]), 6 - rank, torch.tensor(True))
    hit_steps.synchronize()
    hit_steps.synchronize()
    if rank:  # the first has none
        ids.add(torch.tensor([[1, 2], [rank, 0], [1, 2]]).numpy())
    else:
        ids.add(torch.zeros(0, 2, dtype=torch.int64).numpy())
    ids.all_reduce()
    found = ids.result()
    assert found
    return {"first": hit_steps.first, "last": hit_steps.last, "rows": found.rows, "ids": found.ids}


def everything() -> dict[str, Any]:
    return {work.__name__: work() for work in (reduced_everywhere, shared, of_first, votes, stopped, started, counted)}


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return in_processes(SIZE, everything)


def test_sums_and_extremes_are_those_of_all(found: list[dict[str, Any]]) -> None:
    for rank, each in enumerate(found):
        own = each["reduced_everywhere"]
        assert own["place"] == [rank, SIZE, rank == 0]
        assert own["sum"].tolist() == [3, 12]
        assert own["largest"].tolist() == [2, 5]
        assert own["smallest"].tolist() == [0, 3]
        assert own["own"].tolist() == [rank, 5 - rank]  # as it was


def test_rows_stand_in_order_of_the_ranks(found: list[dict[str, Any]]) -> None:
    expected = torch.cat([rows_of(rank) for rank in range(SIZE)])
    for each in found:
        assert torch.equal(each["reduced_everywhere"]["rows"], expected)
        assert each["reduced_everywhere"]["nothing"].shape == (0, 4)


def test_shares_are_asked_for_unless_they_are_planned(found: list[dict[str, Any]]) -> None:
    assert [each["shared"]["share"] for each in found] == [[0, 2, 5, True], [2, 0, 5, True], [2, 3, 5, True]]
    assert [each["shared"]["plan"] for each in found] == [[0, 2, 7, True], [2, 2, 7, True], [4, 3, 7, True]]


def test_the_gradient_of_a_sum_is_the_sum_of_the_gradients(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["shared"]["gradient"].tolist() == [1 + 2 + 3, 9]


def test_a_mean_is_one_over_all_shares(found: list[dict[str, Any]]) -> None:
    expected = torch.cat([rows_of(rank) for rank in range(SIZE)]).mean()
    for each in found:
        torch.testing.assert_close(each["shared"]["mean"], expected, rtol=1e-14, atol=0)


def test_the_first_makes_for_all(found: list[dict[str, Any]]) -> None:
    for rank, each in enumerate(found):
        own = each["of_first"]
        assert own["made"]["a"] == [1, "b", None]
        assert own["made"]["t"].tolist() == [0, 1, 2]
        assert own["calls"] == ([0] if rank == 0 else [])


def test_where_the_first_fails_the_others_are_told(found: list[dict[str, Any]]) -> None:
    first, *others = (each["of_first"]["refused"] for each in found)
    assert first == "ValueError: no"
    assert all(other.startswith("Rank0FailedError: stopped: rank 0 failed") for other in others)
    assert len(others) == 2


def test_where_the_first_is_stopped_all_are(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["stopped"] == {"told": "15: stopped by SIGTERM", "votes": [0, 0, 0]}


def test_codes_start_where_those_of_the_first_do(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["started"]["waited"] == [True, False, False]
        assert torch.equal(each["started"]["codes"], found[0]["started"]["codes"])


def test_what_one_answers_all_hear_at_the_next_question(found: list[dict[str, Any]]) -> None:
    assert [each["votes"] for each in found] == [[40 + rank, 0, 0, 0, 15, 0] for rank in range(SIZE)]


def test_hit_steps_are_the_first_and_last_of_all(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["counted"]["first"].tolist() == [3, 4, 5, 4]
        assert each["counted"]["last"].tolist() == [3, 4, 5, 6]


def test_ids_of_all_are_counted_once(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert (each["counted"]["rows"], each["counted"]["ids"]) == (6, 3)
