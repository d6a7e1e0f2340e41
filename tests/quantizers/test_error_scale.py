"""The scale of errors that a relative temperature is measured in."""

import pytest
import torch

from tests.quantizers import assert_same_state, state
from vqtool.quantizers.error_scale import ErrorScale


def step(scale, *errors):
    for error in errors:
        scale.gather(torch.tensor(error), 6)
    scale.update()


def test_it_is_one_while_nothing_is_known():
    scale = ErrorScale()
    assert scale() == 1
    assert scale().shape == ()
    scale.update()
    assert scale() == 1


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("error", [3e-9, 0.25, 4e7])
def test_the_first_error_is_the_scale(decay, error):
    scale = ErrorScale(decay)
    step(scale, error)
    assert float(scale()) == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.99])
def test_it_is_the_average_with_weights_that_fall_off(decay):
    scale, errors = ErrorScale(decay).double(), [0.5, 4.0, 1.0, 0.25, 8.0]
    for number, error in enumerate(errors, start=1):
        step(scale, error)
        weights = [decay ** (number - 1 - age) for age in range(number)]
        expected = sum(w * e for w, e in zip(weights, errors, strict=False)) / sum(weights)
        assert float(scale()) == pytest.approx(expected, rel=1e-12)


def test_an_error_that_stays_is_the_scale_however_long():
    scale = ErrorScale()
    for _ in range(3000):
        step(scale, 0.7)
    assert float(scale()) == pytest.approx(0.7, rel=1e-4)


def test_batches_before_one_update_are_one_batch():
    one, other = ErrorScale(0.9), ErrorScale(0.9)
    for scale in (one, other):
        step(scale, 8.0)
    one.gather(torch.tensor(1.0), 30)
    one.gather(torch.tensor(5.0), 10)
    one.update()
    step(other, 2.0)  # as they are in one batch of 40
    torch.testing.assert_close(state(one), state(other))
    assert float(one()) == pytest.approx((0.9 * 8 + 2) / 1.9, rel=1e-6)


def test_without_any_error_it_is_tiny_but_no_divisor_of_zero():
    scale = ErrorScale()
    step(scale, 0.0)
    assert float(scale()) == pytest.approx(1e-12)


def test_gathering_and_looking_change_no_state():
    scale = ErrorScale()
    step(scale, 2.0)
    before = state(scale)
    scale.gather(torch.tensor(9.0), 6)
    scale()
    assert_same_state(state(scale), before)


def test_what_is_discarded_leaves_no_trace():
    one, other = ErrorScale(), ErrorScale()
    one.gather(torch.tensor(float("nan")), 6)
    one.discard()
    one.update()
    assert_same_state(state(one), state(other))
    for scale in (one, other):
        step(scale, 2.0)
    assert_same_state(state(one), state(other))


def test_it_has_no_gradient():
    scale, error = ErrorScale(), torch.tensor(2.0, requires_grad=True)
    scale.gather(error.square(), 6)
    scale.update()
    assert not scale().requires_grad
    assert list(scale.parameters()) == []


def test_float64_errors_come_into_float32_state():
    scale = ErrorScale()
    scale.gather(torch.tensor(0.1, dtype=torch.float64), 6)
    scale.update()
    assert scale().dtype == torch.float32
    assert float(scale()) == pytest.approx(0.1, rel=1e-6)


def test_it_survives_in_the_state():
    one, other = ErrorScale(), ErrorScale()
    step(one, 2.0)
    other.load_state_dict(state(one))
    for scale in (one, other):
        step(scale, 5.0)
    assert torch.equal(one(), other())
    assert set(one.state_dict()) == {"error", "weight"}
