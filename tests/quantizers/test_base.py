"""How the gradient passes the choice of a code: the rotation trick against rotations written out in float64."""

import math

import pytest
import torch

from vqtool import VectorQuantizer
from vqtool.quantizers import EmaUpdate, FiniteScalarQuantizer, ResidualQuantizer
from vqtool.quantizers.base import GRADIENT_ESTIMATORS, rotation, straight_through


def some(n, d, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def rotation_matrix(z, e):
    """The rotation in the plane of z and e that takes the direction of z to that of e, by its angle."""
    along = z / z.norm()
    across = e - (e @ along) * along
    across = across / across.norm()
    angle = math.atan2(float(e @ across), float(e @ along))
    plane = torch.outer(along, along) + torch.outer(across, across)
    turn = torch.outer(across, along) - torch.outer(along, across)
    return torch.eye(len(z), dtype=z.dtype) + (math.cos(angle) - 1) * plane + math.sin(angle) * turn


def passed(way, vectors, codes, slopes):
    """What comes out, and the gradients that `slopes` give vectors and codes."""
    vectors, codes = (tensor.clone().requires_grad_() for tensor in (vectors, codes))
    quantized = way(vectors, codes)
    gradients = torch.autograd.grad(quantized, [vectors, codes], slopes, allow_unused=True)
    return quantized.detach(), *gradients


def test_the_matrix_of_these_tests_is_a_rotation():
    for z, e, _ in zip(*some(20, 5), strict=True):
        matrix = rotation_matrix(z, e)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(5).double())
        assert float(torch.linalg.det(matrix)) == pytest.approx(1)
        torch.testing.assert_close(matrix @ z / z.norm(), e / e.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_straight_through_hands_the_gradient_on_as_it_is(dtype):
    vectors, codes, slopes = some(20, 5, dtype)
    quantized, of_vectors, of_codes = passed(straight_through, vectors, codes, slopes)
    torch.testing.assert_close(quantized, codes)
    assert torch.equal(of_vectors, slopes)
    assert of_codes is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [2, 5, 64])
def test_rotation_turns_and_scales_the_gradient_as_the_vector(dtype, d):
    vectors, codes, slopes = some(20, d, dtype)
    quantized, of_vectors, of_codes = passed(rotation, vectors, codes, slopes)
    torch.testing.assert_close(quantized, codes)
    assert quantized.dtype == of_vectors.dtype == dtype
    assert of_codes is None
    close = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    for mine, z, e, slope in zip(*(t.double() for t in (of_vectors, vectors, codes, slopes)), strict=True):
        torch.testing.assert_close(mine, e.norm() / z.norm() * rotation_matrix(z, e).T @ slope, **close)


def test_the_angle_between_gradient_and_vector_is_kept():
    vectors, codes, slopes = some(30, 6)
    _, gradients, _ = passed(rotation, vectors, codes, slopes)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(gradients, vectors), cosine(slopes, codes))
    scale = codes.norm(dim=1) / vectors.norm(dim=1)
    torch.testing.assert_close(gradients.norm(dim=1), scale * slopes.norm(dim=1))


def test_a_quarter_turn_by_hand():
    vectors, codes = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 6.0]])
    _, gradient, _ = passed(rotation, vectors, codes, torch.tensor([[1.0, 10.0]]))
    # Turning by 90 degrees and scaling by 3 takes (x, y) to (-3 y, 3 x); the gradient goes the transposed way.
    torch.testing.assert_close(gradient, torch.tensor([[30.0, -3.0]]))


@pytest.mark.parametrize("factor", [1.0, 0.5, 3.0])
def test_a_code_in_the_direction_of_the_vector_scales_alone(factor):
    vectors, _, slopes = some(20, 5)
    quantized, gradients, _ = passed(rotation, vectors, factor * vectors, slopes)
    torch.testing.assert_close(quantized, factor * vectors)
    torch.testing.assert_close(gradients, factor * slopes)


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_opposite_code_turns_the_vector_about(dtype, d):
    vectors, _, slopes = some(20, d, dtype)
    quantized, gradients, _ = passed(rotation, vectors, -2 * vectors, slopes)
    torch.testing.assert_close(quantized, -2 * vectors)
    # No one plane to turn in: what lies across is kept.
    along = torch.nn.functional.normalize(vectors.double(), dim=1)
    slopes = slopes.double()
    expected = 2 * (slopes - 2 * (slopes * along).sum(dim=1, keepdim=True) * along)
    torch.testing.assert_close(gradients.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_vector_has_its_code_and_no_gradient(dtype):
    vectors, codes, slopes = some(3, 4, dtype)
    vectors[1] = 0
    quantized, gradients, _ = passed(rotation, vectors, codes, slopes)
    torch.testing.assert_close(quantized, codes)
    assert gradients[1].tolist() == [0] * 4
    assert gradients.isfinite().all()
    alone = [tensor[[0, 2]] for tensor in (vectors, codes, slopes)]
    torch.testing.assert_close(gradients[[0, 2]], passed(rotation, *alone)[1])


def test_a_zero_code_gives_no_gradient():
    vectors, codes, slopes = some(3, 4)
    codes[1] = 0
    quantized, gradients, _ = passed(rotation, vectors, codes, slopes)
    torch.testing.assert_close(quantized, codes)
    assert gradients[1].tolist() == [0] * 4
    assert gradients.isfinite().all()


@pytest.mark.parametrize("way", GRADIENT_ESTIMATORS.values(), ids=GRADIENT_ESTIMATORS)
def test_leading_axes_are_only_a_view(way):
    vectors, codes, slopes = some(24, 5)
    flat = passed(way, vectors, codes, slopes)
    shaped = passed(way, *(tensor.reshape(4, 6, 5) for tensor in (vectors, codes, slopes)))
    for mine, expected in zip(shaped[:2], flat[:2], strict=True):
        torch.testing.assert_close(mine.reshape(24, 5), expected)


def test_rotation_is_that_of_vector_quantize_pytorch():
    oracle = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    vectors, codes, slopes = some(50, 8)
    theirs = vectors.clone().requires_grad_()
    quantized = oracle.rotate_to(theirs, codes)
    (expected,) = torch.autograd.grad(quantized, theirs, slopes)
    mine, gradients, _ = passed(rotation, vectors, codes, slopes)
    torch.testing.assert_close(mine, quantized.detach())
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("name", GRADIENT_ESTIMATORS)
def test_a_quantizer_passes_the_gradient_as_it_is_told(name):
    torch.manual_seed(0)
    model = VectorQuantizer(7, 4, update=EmaUpdate(), gradient_estimator=name).double()
    with torch.no_grad():
        model.codebook.weight.normal_()
    z, slopes = (tensor.reshape(2, 5, 4) for tensor in some(10, 4)[:2])
    z.requires_grad_()
    output = model(z)
    (gradient,) = torch.autograd.grad(output.quantized, z, slopes)
    expected = passed(GRADIENT_ESTIMATORS[name], z.detach(), model.codes[output.indices], slopes)
    torch.testing.assert_close(output.quantized, expected[0])
    torch.testing.assert_close(gradient, expected[1])


@pytest.mark.parametrize("kind", ["vector", "residual", "fsq"])
def test_a_share_of_the_samples_passes_unquantized_in_training_alone(kind):
    levels = {
        "vector": VectorQuantizer(8, 2, unquantized_fraction=0.5),
        "residual": ResidualQuantizer([VectorQuantizer(8, 2, unquantized_fraction=0.5) for _ in range(2)]),
        "fsq": FiniteScalarQuantizer([5, 5]),
    }
    quantizer = levels[kind].double()
    if kind == "fsq":
        quantizer.unquantized_fraction = 0.5
    z = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    plain = quantizer.eval()(z)
    output = quantizer.train()(z)
    quantizer.discard()
    passed = quantizer.preprocess(z)
    assert torch.equal(output.quantized[:2], passed[:2])
    assert torch.equal(output.quantized[2:], plain.quantized[2:])
    assert torch.equal(output.indices, plain.indices)
    assert output.commitment_loss == plain.commitment_loss
    (gradient,) = torch.autograd.grad(output.quantized.sum(), z)
    (through,) = torch.autograd.grad(passed.sum(), z)
    torch.testing.assert_close(gradient, through)
