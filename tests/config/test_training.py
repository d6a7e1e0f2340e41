"""Learning rate schedules, against the formulas and against sums over steps."""

import math
from typing import Any

import pytest

from vqtool.config import TrainingSettings, cumulative_lr, learning_rate


def schedule(**changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate({"steps": 10, "warmup_steps": 3, "learning_rate": 0.8, **changes})


def test_learning_rate_has_linear_warmup_and_cosine_decay() -> None:
    rates = [learning_rate(schedule(), step) for step in range(10)]
    half = [0.4 * (1 + math.cos(math.pi * n / 7)) for n in range(7)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, *half])
    assert rates[3] == 0.8
    assert learning_rate(schedule(), 10) == pytest.approx(0)


def test_learning_rate_is_half_in_the_middle_of_the_decay() -> None:
    assert learning_rate(schedule(steps=11), 7) == pytest.approx(0.4)


def test_constant_schedule_does_not_decay() -> None:
    rates = [learning_rate(schedule(schedule="constant"), step) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


@pytest.mark.parametrize("warmup", [4, 100])
def test_warmup_is_limited_to_the_run(warmup: int) -> None:
    rates = [learning_rate(schedule(steps=4, warmup_steps=warmup), step) for step in range(4)]
    assert rates == pytest.approx([0.16, 0.32, 0.48, 0.64])


def test_learning_rate_starts_at_its_maximum_without_warmup() -> None:
    assert learning_rate(schedule(warmup_steps=0), 0) == 0.8


@pytest.mark.parametrize("kind", ["cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 60, 2000])
def test_cumulative_lr_is_the_sum_of_the_relative_learning_rates(kind: str, warmup: int) -> None:
    settings = schedule(steps=300, warmup_steps=warmup, schedule=kind)
    expected = [sum(learning_rate(settings, step) for step in range(steps)) / 0.8 for steps in (0, 30, 60, 100, 300)]
    assert [cumulative_lr(settings, steps) for steps in (0, 30, 60, 100, 300)] == pytest.approx(
        expected, rel=0.05, abs=1
    )
