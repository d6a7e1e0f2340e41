"""Soft assignments are summed in full precision, whatever the user has set or compiled."""

import math

import pytest
import torch

from tests.quantizers import halved_least, random_normal
from vqtool import VectorQuantizer
from vqtool.quantizers import soft_assignment
from vqtool.quantizers.entropy import entropy_loss

BACKENDS = [torch.backends.mkldnn.matmul, torch.backends.cuda.matmul]
each_confidence = pytest.mark.parametrize("sample_entropy_weight", [0.0, 0.5])


def leaves(n=300, k=200, d=32):
    return [random_normal(seed, rows, d).requires_grad_() for seed, rows in enumerate((n, k))]


def loss_and_gradients(inputs, sample_entropy_weight, loss=entropy_loss):
    value = loss(*inputs, 8.0, sample_entropy_weight)
    return value.detach(), *torch.autograd.grad(value, inputs)


def assert_same(found, wanted):
    for mine, expected in zip(found, wanted, strict=True):
        assert mine.dtype == expected.dtype
        assert torch.equal(mine, expected)


@each_confidence
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vectors_have_the_losses_of_the_same_numbers_in_float32(sample_entropy_weight, dtype):
    model = VectorQuantizer(11, 6, sample_entropy_weight=sample_entropy_weight)
    with torch.no_grad():
        model.codebook.weight.copy_(random_normal(1, 11, 6))
    short = random_normal(0, 40, 6, dtype=dtype).requires_grad_()
    same = short.detach().float().requires_grad_()
    found, wanted = model(short), model(same)
    assert found.entropy_loss.dtype == found.commitment_loss.dtype == torch.float32
    torch.testing.assert_close(found.entropy_loss, wanted.entropy_loss)
    torch.testing.assert_close(found.commitment_loss, wanted.commitment_loss)
    of_short = torch.autograd.grad(found.entropy_loss, [short, model.codebook.weight])
    of_same = torch.autograd.grad(wanted.entropy_loss, [same, model.codebook.weight])
    assert of_short[0].dtype == dtype
    torch.testing.assert_close(of_short[0], of_same[0].to(dtype))
    torch.testing.assert_close(of_short[1], of_same[1])


@each_confidence
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_in_half_precision_are_lifted(sample_entropy_weight, dtype):
    model = VectorQuantizer(11, 6, sample_entropy_weight=sample_entropy_weight).to(dtype)
    lifted = VectorQuantizer(11, 6, sample_entropy_weight=sample_entropy_weight)
    lifted.load_state_dict(model.state_dict())
    vectors = random_normal(0, 40, 6, dtype=dtype)
    found, wanted = model(vectors).entropy_loss, lifted(vectors).entropy_loss
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)


@each_confidence
def test_autocast_changes_nothing_forth_or_back(sample_entropy_weight):
    inputs = leaves()
    wanted = loss_and_gradients(inputs, sample_entropy_weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(loss_and_gradients(inputs, sample_entropy_weight), wanted)
        value = entropy_loss(*inputs, 8.0, sample_entropy_weight)
        assert torch.is_autocast_enabled("cpu")
    assert_same([value.detach(), *torch.autograd.grad(value, inputs)], wanted)


@each_confidence
@pytest.mark.parametrize("precision", ["medium", "high"])
def test_a_lower_precision_of_products_changes_nothing_and_stays_the_users(
    monkeypatch, matmul_precision, sample_entropy_weight, precision
):
    inputs, during = leaves(), []
    wanted = loss_and_gradients(inputs, sample_entropy_weight)

    def spied(work):
        def spy(*arguments):
            during.extend(backend.fp32_precision for backend in BACKENDS)
            return work(*arguments)

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
    assert_same([value.detach(), *gradients], wanted)


def test_the_precision_is_the_users_again_after_an_error_on_the_way_back(monkeypatch, matmul_precision):
    def fail(*arguments):
        raise MemoryError

    inputs = leaves(3, 3, 2)
    monkeypatch.setattr(soft_assignment, "_gradients", fail)
    matmul_precision("medium")
    value = entropy_loss(*inputs, 1.0)
    with pytest.raises(MemoryError):
        value.backward()
    assert torch.get_float32_matmul_precision() == "medium"


# Dynamo warns of what it does not trace, and of more with every version.
@pytest.mark.filterwarnings("ignore")
def test_compiling_changes_nothing():
    inputs = leaves(50, 20, 8)
    wanted = loss_and_gradients(inputs, 0.5)
    try:
        assert_same(loss_and_gradients(inputs, 0.5, torch.compile(entropy_loss, backend="eager")), wanted)
    finally:
        torch.compiler.reset()


def test_no_denormal_number_is_made():
    # The second code's share is 2^-140, which is one, and takes some processors many times as long.
    distance = (140 * math.log(2)) ** 0.5
    vectors = torch.zeros(3, 1, requires_grad=True)
    codes = torch.tensor([[0.0], [distance]], requires_grad=True)
    assignment = soft_assignment.soft_sums(vectors, codes, 1.0, entropy=False).assignment
    assert assignment.tolist() == [3.0, 0.0]
    (of_codes,) = torch.autograd.grad(assignment[1], codes)
    assert of_codes.tolist() == [[0.0], [0.0]]
    assert halved_least() > 0  # the caller's setting is as it was
