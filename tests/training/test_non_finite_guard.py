"""What is noted of steps whose losses are not finite."""

import math

import pytest
import torch

from vqtool.training.non_finite_guard import NonFiniteGuard

CPU = torch.device("cpu")


def terms(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}


def test_finite_steps_are_good_and_nothing_is_found() -> None:
    watch = NonFiniteGuard(CPU)
    assert watch.first() == (-1, [])
    assert all(bool(watch.note(step, terms(a=1.0, b=-1e30))) for step in range(5))
    assert watch.first() == (4, [])


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_bad_step_is_named_with_its_terms(bad: float) -> None:
    watch = NonFiniteGuard(CPU)
    watch.note(6, terms(a=1.0, b=1.0, c=1.0))
    good = watch.note(7, terms(a=bad, b=1.0, c=bad))
    assert good.dtype == torch.bool
    assert not good.requires_grad
    assert not good
    assert watch.first() == (7, ["a", "c"])


def test_after_a_bad_step_none_is_good_and_the_first_stays_the_one_told() -> None:
    watch = NonFiniteGuard(CPU)
    assert not watch.note(0, terms(a=math.nan, b=1.0))
    assert not watch.note(1, terms(a=1.0, b=1.0))
    assert not watch.note(2, terms(a=1.0, b=math.inf))
    assert watch.first() == (0, ["a"])


def test_noting_asks_nothing_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, losses = NonFiniteGuard(CPU), terms(a=1.0, b=math.nan)

    def refuse(tensor: torch.Tensor) -> bool:
        raise AssertionError("the host waits for the device")

    for name in ("__bool__", "__int__", "__float__", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    watch.note(0, losses)
