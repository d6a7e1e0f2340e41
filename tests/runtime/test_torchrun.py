"""Rank and world size from the environment."""

import pytest

from vqtool.runtime.torchrun import rank_info


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, None)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8, None)),
        ({"RANK": "3"}, (0, 1, None)),
        ({"WORLD_SIZE": "8"}, (0, 1, None)),
        ({"RANK": "x", "WORLD_SIZE": "8", "LOCAL_RANK": "-1"}, (0, 1, None)),
    ],
)
def test_rank_info_of_an_environment(environment: dict[str, str], expected: tuple[int, int, int | None]) -> None:
    assert tuple(rank_info(environment)) == expected
