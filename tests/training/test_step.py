"""The guard against non-finite losses and gradients."""

import math

import pytest
import torch

from vqtool.training.step import NonFiniteGuard

CPU = torch.device("cpu")


def terms(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}


def test_finite_steps_are_not_reported() -> None:
    guard = NonFiniteGuard(CPU)
    assert guard.first_non_finite() == (-1, [])
    assert all(bool(guard.record(step, terms(a=1.0, b=-1e30))) for step in range(5))
    assert guard.first_non_finite() == (4, [])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_non_finite_terms_are_named_with_their_step(value: float) -> None:
    guard = NonFiniteGuard(CPU)
    guard.record(6, terms(a=1.0, b=1.0, c=1.0))
    is_finite = guard.record(7, terms(a=value, b=1.0, c=value))
    assert is_finite.dtype == torch.bool
    assert not is_finite.requires_grad
    assert not is_finite
    assert guard.first_non_finite() == (7, ["a", "c"])


def test_no_step_after_a_non_finite_one_may_be_applied() -> None:
    guard = NonFiniteGuard(CPU)
    assert not guard.record(0, terms(a=math.nan, b=1.0))
    assert not guard.record(1, terms(a=1.0, b=1.0))
    assert not guard.record(2, terms(a=1.0, b=math.inf))
    assert guard.first_non_finite() == (0, ["a"])


def test_record_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, losses = NonFiniteGuard(CPU), terms(a=1.0, b=math.nan)

    def refuse(tensor: torch.Tensor) -> bool:
        raise AssertionError("the host waits for the device")

    for name in ("__bool__", "__int__", "__float__", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    guard.record(0, losses)
