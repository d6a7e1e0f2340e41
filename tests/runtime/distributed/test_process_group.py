"""`on_rank0` on three ranks: one call, the same result or error on every rank."""

from typing import Any

import pytest
import torch

from tests.runtime.distributed import run_on_ranks
from vqtool.errors import Stopped
from vqtool.runtime import distributed
from vqtool.runtime.distributed.process_group import Rank0FailedError

RANKS = 3


# Functions that run on every rank; their results are checked below.


def results_of_on_rank0() -> dict[str, Any]:
    rank = distributed.rank()
    calls = []

    def fail() -> None:
        raise ValueError("no")

    result = distributed.on_rank0(lambda: calls.append(rank) or {"a": [1, "b", None], "t": torch.arange(3)})
    try:
        distributed.on_rank0(fail)
        error_text = ""
    except (ValueError, Rank0FailedError) as error:
        error_text = f"{type(error).__name__}: {error}"
    return {"result": result, "calls": calls, "error": error_text}


def stop_in_on_rank0() -> dict[str, Any]:
    def stop() -> None:
        distributed.any_rank(2)  # must not communicate, because the other ranks do not call it
        raise Stopped(15, "stopped by SIGTERM")

    with distributed.async_any_rank():
        before = distributed.any_rank(0)
        try:
            distributed.on_rank0(stop)
            error_text = ""
        except Stopped as error:
            error_text = f"{error.signal}: {error}"
        after = [distributed.any_rank(0), distributed.any_rank(0)]
    return {"error": error_text, "any_rank": [before, *after]}


def all_results() -> dict[str, Any]:
    return {function.__name__: function() for function in (results_of_on_rank0, stop_in_on_rank0)}


@pytest.fixture(scope="module")
def by_rank() -> list[dict[str, Any]]:
    """Results of every rank, by name of the function."""
    return run_on_ranks(RANKS, all_results)


def test_on_rank0_calls_once_and_returns_on_all_ranks(by_rank: list[dict[str, Any]]) -> None:
    for rank, results in enumerate(by_rank):
        on_rank0 = results["results_of_on_rank0"]
        assert on_rank0["result"]["a"] == [1, "b", None]
        assert on_rank0["result"]["t"].tolist() == [0, 1, 2]
        assert on_rank0["calls"] == ([0] if rank == 0 else [])


def test_on_rank0_raises_on_all_ranks_if_rank_0_fails(by_rank: list[dict[str, Any]]) -> None:
    rank0_error, *other_errors = (results["results_of_on_rank0"]["error"] for results in by_rank)
    assert rank0_error == "ValueError: no"
    assert all(error.startswith("Rank0FailedError: ") and "rank 0" in error for error in other_errors)
    assert len(other_errors) == RANKS - 1


def test_on_rank0_raises_stopped_on_all_ranks_if_rank_0_is_stopped(by_rank: list[dict[str, Any]]) -> None:
    for results in by_rank:
        assert results["stop_in_on_rank0"] == {"error": "15: stopped by SIGTERM", "any_rank": [0, 0, 0]}
