"""Quantizers without a learned codebook: indices, entropies and statistics against all codes listed in float64."""

import itertools
import math

import pytest
import torch

from tests.quantizers import state
from vqtool.quantizers import BinarySphericalQuantizer, FiniteScalarQuantizer, LookupFreeQuantizer
from vqtool.runtime.distributed import BatchShard

BUILDS = {
    "fsq": lambda **options: FiniteScalarQuantizer([3, 4, 2], **options),
    "lfq": lambda **options: LookupFreeQuantizer(4, **options),
    "bsq": lambda **options: BinarySphericalQuantizer(4, **options),
}
KINDS = list(BUILDS)


def vectors(*shape, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def all_codes(model):
    """Return every combination of values (K, D), the first dimension changing fastest."""
    values = [row[:size] for row, size in zip(model.values.double().tolist(), model.values_per_dim, strict=True)]
    return torch.tensor([choice[::-1] for choice in itertools.product(*values[::-1])], dtype=torch.float64)


def joint_assignment(model, preprocessed):
    """Return the soft assignment (N, K) to all codes."""
    distances = (preprocessed[:, None] - all_codes(model)).square().sum(dim=2)
    weights = torch.exp(-distances / model.temperature)
    return weights / weights.sum(dim=1, keepdim=True)


def entropy(p):
    return -(p[p > 0] * p[p > 0].log()).sum()


def marginals(model, p):
    """Return the marginal distribution of each dimension's values for a distribution (K,) over codes."""
    codes, marginal = all_codes(model), []
    for dimension, size in enumerate(model.values_per_dim):
        values = model.values[dimension, :size].double()
        marginal.append(torch.stack([p[codes[:, dimension] == value].sum() for value in values]))
    return marginal


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_a_mixed_radix_number_with_the_first_digit_least_significant(kind):
    model = BUILDS[kind]()
    assert torch.equal(model.codes.double(), all_codes(model))
    assert model.codebook_sizes == (len(all_codes(model)),) == (math.prod(model.values_per_dim),)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_nearest_inverts_decode(kind, depth):
    model = BUILDS[kind](depth=depth)
    indices = torch.arange(model.codebook_sizes[0])
    assert torch.equal(model.nearest(model.decode(indices)), indices)
    assert torch.equal(model.nearest(model.decode(indices).double()), indices)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [0, 2])
def test_nearest_is_the_nearest_of_all_codes(kind, depth):
    model = BUILDS[kind](depth=depth)
    preprocessed = 2 * vectors(200, model.dim) * 0.4**depth  # some vectors are beyond the outermost values
    expected = (preprocessed[:, None] - all_codes(model)).square().sum(dim=2).argmin(dim=1)
    assert torch.equal(model.nearest(preprocessed), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_decode_keeps_the_shape_of_the_indices(kind):
    model = BUILDS[kind]()
    indices = torch.randint(model.codebook_sizes[0], (2, 5), generator=torch.Generator().manual_seed(0))
    decoded = model.decode(indices)
    assert decoded.shape == (2, 5, model.dim)
    for b, position in itertools.product(range(2), range(5)):
        assert torch.equal(decoded[b, position], model.codes[indices[b, position]])
    assert torch.equal(model.decode(indices[0, 0]), decoded[0, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(("temperature", "sample_entropy_weight"), [(0.05, 0.0), (0.3, 0.7), (3.0, 2.0)])
def test_the_entropy_loss_follows_the_formula_over_all_codes(kind, depth, temperature, sample_entropy_weight):
    model = BUILDS[kind](temperature=temperature, sample_entropy_weight=sample_entropy_weight, depth=depth)
    preprocessed = model.preprocess(vectors(40, model.dim)) * 0.4**depth
    soft = joint_assignment(model, preprocessed)
    batch = sum(entropy(p) for p in marginals(model, soft.mean(dim=0)))
    sample = torch.stack([entropy(p) for p in soft]).mean()
    output = model.quantize(preprocessed, model.nearest(preprocessed), BatchShard.unsharded(len(preprocessed)))
    assert float(output.entropy_loss) == pytest.approx(
        float(-batch + sample_entropy_weight * sample), rel=1e-6, abs=1e-6
    )
    # The entropy of the product of the marginals is at least that of the joint distribution.
    assert batch >= entropy(soft.mean(dim=0)) - 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_the_entropy_gradient_follows_the_formula_over_all_codes(kind):
    model = BUILDS[kind](temperature=0.4, sample_entropy_weight=0.7)
    z, same = (vectors(12, model.dim).requires_grad_() for _ in range(2))
    model(z).entropy_loss.backward()
    soft = joint_assignment(model, model.preprocess(same))
    batch = sum(entropy(p) for p in marginals(model, soft.mean(dim=0)))
    (0.7 * torch.stack([entropy(p) for p in soft]).mean() - batch).backward()
    torch.testing.assert_close(z.grad, same.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_raw_sums(kind):
    model, z = BUILDS[kind](temperature=0.4), vectors(6, 5, 3 if kind == "fsq" else 4)
    indices = model.encode(z)
    (level,) = model.statistics(z, indices)
    preprocessed = model.preprocess(z).reshape(-1, model.dim)
    soft = joint_assignment(model, preprocessed)
    assert level.counts.tolist() == [indices.flatten().tolist().count(k) for k in range(model.codebook_sizes[0])]
    assert level.soft_assignment.shape == (model.dim, max(model.values_per_dim))
    for row, p in zip(level.soft_assignment, marginals(model, soft.sum(dim=0)), strict=True):
        torch.testing.assert_close(row[: len(p)], p, rtol=1e-6, atol=1e-6)
        assert row[len(p) :].tolist() == [0] * (len(row) - len(p))
    expected = sum(float(entropy(p)) for p in soft)
    assert float(level.sample_entropy) == pytest.approx(expected, rel=1e-6)
    error = (preprocessed - all_codes(model)[indices.flatten()]).square().sum()
    assert float(level.squared_distance) == pytest.approx(float(error), rel=1e-6)
    assert int(level.elements) == z.numel()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_losses_are_computed_in_at_least_float32(kind, dtype):
    model = BUILDS[kind](sample_entropy_weight=0.5)
    z = vectors(7, model.dim, dtype=dtype)
    output, wide = model(z), model(z.to(torch.promote_types(dtype, torch.float32)))
    assert output.quantized.dtype == dtype
    assert output.entropy_loss.dtype == output.commitment_loss.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(output.indices, wide.indices)
    assert torch.equal(output.entropy_loss, wide.entropy_loss)
    assert torch.equal(output.commitment_loss, wide.commitment_loss)
    assert torch.equal(output.quantized, wide.quantized.to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_distant_vectors_are_finite(kind):
    model = BUILDS[kind](temperature=1e-3, sample_entropy_weight=1.0)
    z = (1e4 * vectors(9, model.dim, dtype=torch.float32)).requires_grad_()
    output = model(z)
    (output.quantized.sum() + output.entropy_loss + output.commitment_loss).backward()
    assert output.entropy_loss.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_dict_and_the_parameters_are_empty(kind):
    model = BUILDS[kind]()
    model(vectors(9, model.dim))
    model.update()
    model.discard()
    model.run_init()
    model.init_codes(vectors(9, model.dim))
    assert state(model) == {}
    assert list(model.parameters()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_evaluation_give_the_same_output(kind):
    model = BUILDS[kind](sample_entropy_weight=0.3)
    z = vectors(9, model.dim)
    for trained, evaluated in zip(model.train()(z), model.eval()(z), strict=True):
        assert torch.equal(trained, evaluated)
    assert torch.equal(model.encode(z), model(z).indices)
    torch.testing.assert_close(model(z).quantized, model.decode(model.encode(z)).double())


@pytest.mark.parametrize("kind", KINDS)
def test_a_deeper_level_is_the_first_level_scaled_down(kind):
    first, third = (
        BUILDS[kind](temperature=0.4, sample_entropy_weight=0.3),
        BUILDS[kind](temperature=0.4, sample_entropy_weight=0.3, depth=2),
    )
    if kind == "fsq":
        first = FiniteScalarQuantizer([3, 3, 3], 0.4, 0.3)
        third = FiniteScalarQuantizer([3, 3, 3], 0.4, 0.3, depth=2)
    ratio = float(third.values[0, 0] / first.values[0, 0])
    assert 0 < ratio <= 0.25
    preprocessed = 0.5 * vectors(20, first.dim)
    indices = first.nearest(preprocessed)
    assert torch.equal(third.nearest(preprocessed * ratio), indices)
    shard = BatchShard.unsharded(len(preprocessed))
    large, small = first.quantize(preprocessed, indices, shard), third.quantize(preprocessed * ratio, indices, shard)
    torch.testing.assert_close(small.quantized, large.quantized * ratio, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(small.entropy_loss, large.entropy_loss, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(small.commitment_loss, large.commitment_loss * ratio**2, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_another_width_are_refused(kind):
    model = BUILDS[kind]()
    with pytest.raises(ValueError, match=rf"\(\.\.\., {model.dim}\), got \(2, 7\)"):
        model(torch.zeros(2, 7))
