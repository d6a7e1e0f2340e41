"""The time left, from the durations of steps and validations, and an estimate of the initialisation."""

import pytest

from vqtool.config import TrainingSettings
from vqtool.training.eta import Eta, validations_after


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def training(**settings: int) -> TrainingSettings:
    return TrainingSettings.model_validate({"steps": 100, "validate_every": 40, **settings})


def step(eta: Eta, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    eta.after_step()


def test_before_the_first_step_nothing_is_known(clock: Clock) -> None:
    assert Eta(training(), 5.0, clock).seconds(0) is None


def test_it_is_the_mean_step_times_the_steps_left(clock: Clock) -> None:
    eta = Eta(training(), clock=clock)
    for seconds in (9.0, 1.0, 3.0):
        step(eta, clock, seconds)
    assert eta.seconds(3) == 97 * 2.0  # without the first step, which loads kernels


def test_the_first_step_counts_while_it_is_the_only_one(clock: Clock) -> None:
    eta = Eta(training(), clock=clock)
    step(eta, clock, 9.0)
    assert eta.seconds(1) == 99 * 9.0


def test_it_includes_the_initialisation_until_it_is_done(clock: Clock) -> None:
    eta = Eta(training(), 50.0, clock)
    for _ in range(3):
        step(eta, clock, 1.0)
    assert eta.seconds(3) == 97 + 50
    clock.now += 70
    eta.after_initialisation()
    assert eta.seconds(3) == 97


def test_the_initialisation_is_no_step_time_and_later_steps_are_measured_afresh(clock: Clock) -> None:
    eta = Eta(training(), 50.0, clock)
    for _ in range(3):
        step(eta, clock, 1.0)
    clock.now += 70
    eta.after_initialisation()
    for seconds in (8.0, 4.0, 2.0):
        step(eta, clock, seconds)
    assert eta.seconds(6) == 94 * 3.0


def test_validations_are_no_step_time_and_are_still_to_come(clock: Clock) -> None:
    eta = Eta(training(), clock=clock)
    for _ in range(3):
        step(eta, clock, 1.0)
    clock.now += 10
    eta.after_validation()
    assert eta.seconds(40) == 60 + 2 * 10
    clock.now += 2
    eta.after_report()
    step(eta, clock, 1.0)
    assert eta.seconds(41) == 59 + 2 * 12


@pytest.mark.parametrize(
    ("steps", "after", "left"), [(100, 0, 3), (100, 39, 3), (100, 40, 2), (100, 80, 1), (100, 100, 0), (80, 79, 1)]
)
def test_validations_left(steps: int, after: int, left: int) -> None:
    assert validations_after(training(steps=steps), after) == left
