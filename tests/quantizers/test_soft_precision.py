"""Soft assignments are computed in full float32, whatever precision settings, autocast or compilation are active."""

import math

import pytest
import torch

from tests.quantizers import half_smallest_normal, random_normal
from vqtool import VectorQuantizer
from vqtool.quantizers import soft_assignment
from vqtool.quantizers.losses import entropy_loss

BACKENDS = [torch.backends.mkldnn.matmul, torch.backends.cuda.matmul]
each_sample_entropy_weight = pytest.mark.parametrize("sample_entropy_weight", [0.0, 0.5])


def leaves(n=300, k=200, d=32):
    return [random_normal(seed, rows, d).requires_grad_() for seed, rows in enumerate((n, k))]


def loss_and_gradients(inputs, sample_entropy_weight, loss=entropy_loss):
    value = loss(*inputs, 8.0, sample_entropy_weight)
    return value.detach(), *torch.autograd.grad(value, inputs)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@each_sample_entropy_weight
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vectors_give_the_losses_of_the_same_vectors_in_float32(sample_entropy_weight, dtype):
    model = VectorQuantizer(11, 6, sample_entropy_weight=sample_entropy_weight)
    with torch.no_grad():
        model.codebook.weight.copy_(random_normal(1, 11, 6))
    half = random_normal(0, 40, 6, dtype=dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    found, expected = model(half), model(full)
    assert found.entropy_loss.dtype == found.commitment_loss.dtype == torch.float32
    torch.testing.assert_close(found.entropy_loss, expected.entropy_loss)
    torch.testing.assert_close(found.commitment_loss, expected.commitment_loss)
    half_gradients = torch.autograd.grad(found.entropy_loss, [half, model.codebook.weight])
    full_gradients = torch.autograd.grad(expected.entropy_loss, [full, model.codebook.weight])
    assert half_gradients[0].dtype == dtype
    torch.testing.assert_close(half_gradients[0], full_gradients[0].to(dtype))
    torch.testing.assert_close(half_gradients[1], full_gradients[1])


@each_sample_entropy_weight
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_codes_are_computed_in_float32(sample_entropy_weight, dtype):
    model = VectorQuantizer(11, 6, sample_entropy_weight=sample_entropy_weight).to(dtype)
    float32_model = VectorQuantizer(11, 6, sample_entropy_weight=sample_entropy_weight)
    float32_model.load_state_dict(model.state_dict())
    vectors = random_normal(0, 40, 6, dtype=dtype)
    found, expected = model(vectors).entropy_loss, float32_model(vectors).entropy_loss
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@each_sample_entropy_weight
def test_autocast_does_not_change_loss_or_gradients(sample_entropy_weight):
    inputs = leaves()
    expected = loss_and_gradients(inputs, sample_entropy_weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(loss_and_gradients(inputs, sample_entropy_weight), expected)
        value = entropy_loss(*inputs, 8.0, sample_entropy_weight)
        assert torch.is_autocast_enabled("cpu")
    assert_same([value.detach(), *torch.autograd.grad(value, inputs)], expected)


@each_sample_entropy_weight
@pytest.mark.parametrize("precision", ["medium", "high"])
def test_lower_matmul_precision_does_not_apply_and_is_restored(
    monkeypatch, matmul_precision, sample_entropy_weight, precision
):
    inputs, during = leaves(), []
    expected = loss_and_gradients(inputs, sample_entropy_weight)

    def spied(function):
        def spy(*arguments):
            during.extend(backend.fp32_precision for backend in BACKENDS)
            return function(*arguments)

        return spy

    for name in ("_sums", "_gradients"):
        monkeypatch.setattr(soft_assignment, name, spied(getattr(soft_assignment, name)))
    matmul_precision(precision)
    value = entropy_loss(*inputs, 8.0, sample_entropy_weight)
    assert torch.get_float32_matmul_precision() == precision
    gradients = torch.autograd.grad(value, inputs)
    assert torch.get_float32_matmul_precision() == precision
    assert len(during) == 2 * len(BACKENDS)
    assert not {"bf16", "tf32"} & set(during)
    assert_same([value.detach(), *gradients], expected)


def test_matmul_precision_is_restored_after_an_error_in_backward(monkeypatch, matmul_precision):
    def fail(*arguments):
        raise MemoryError

    inputs = leaves(3, 3, 2)
    monkeypatch.setattr(soft_assignment, "_gradients", fail)
    matmul_precision("medium")
    value = entropy_loss(*inputs, 1.0)
    with pytest.raises(MemoryError):
        value.backward()
    assert torch.get_float32_matmul_precision() == "medium"


# Dynamo emits warnings about what it does not trace.
@pytest.mark.filterwarnings("ignore")
def test_compile_does_not_change_loss_or_gradients():
    inputs = leaves(50, 20, 8)
    expected = loss_and_gradients(inputs, 0.5)
    try:
        assert_same(loss_and_gradients(inputs, 0.5, torch.compile(entropy_loss, backend="eager")), expected)
    finally:
        torch.compiler.reset()


def test_denormal_assignments_are_flushed_to_zero():
    # The assignment to the second code would be 2^-140, a denormal number, which is slow on some processors.
    distance = (140 * math.log(2)) ** 0.5
    vectors = torch.zeros(3, 1, requires_grad=True)
    codes = torch.tensor([[0.0], [distance]], requires_grad=True)
    assignment = soft_assignment.soft_sums(vectors, codes, 1.0, entropy=False).assignment
    assert assignment.tolist() == [3.0, 0.0]
    (grad_codes,) = torch.autograd.grad(assignment[1], codes)
    assert grad_codes.tolist() == [[0.0], [0.0]]
    assert half_smallest_normal() > 0  # the setting of the caller is restored
