"""A validation pass in several chunks against the same figures over everything at once."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vqtool.data import Samples, SampleSpec
from vqtool.data.rows import NumpyRows
from vqtool.metrics.evaluation import evaluate, raw_losses, reconstruct, shuffled_loss
from vqtool.models.autoencoder import Autoencoder, ModelSettings, resolve_model
from vqtool.models.losses import LossSettings
from vqtool.quantizers import LevelStatistics

ROWS = 8
LOSS = LossSettings(reconstruction="mse", commitment=0.25, entropy=0.1)
CONVOLUTION = {"kind": "conv2d", "width": 8, "downsamples": 1, "res_blocks": 1}


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 8 rows for samples of `positions` positions."""

    def set_positions(positions):
        monkeypatch.setattr("vqtool.models.chunks._POSITIONS", ROWS * positions)

    return set_positions


def build(spec, encoder, mean=None, scale=None, **quantizer):
    torch.manual_seed(0)
    quantizer = {"kind": "vector", "codebook_size": 6, **quantizer}
    settings = ModelSettings.model_validate({"encoder": encoder, "quantizer": quantizer})
    channels = spec.channels
    model = Autoencoder(resolve_model(settings, spec), spec, mean or (0.0,) * channels, scale or (1.0,) * channels)
    with torch.no_grad():
        model.quantizer.codes.normal_()
    return model


def samples_of(array, spec, numbers=None):
    return Samples(NumpyRows(array), spec, numbers)


def naive(z, codes, temperature=1.0):
    """Indices, squared distances to the chosen codes, and soft assignments of z (N, D), in float64."""
    z, codes = z.double(), codes.detach().double()
    d = (z[:, None] - codes).square().sum(dim=2)
    weights = torch.exp(-d / temperature)
    return d.argmin(dim=1), d.min(dim=1).values, weights / weights.sum(dim=1, keepdim=True)


def negative_entropy(p):
    return float((p * torch.log(p + 1e-10)).sum())


@pytest.mark.parametrize(
    ("learning", "factor"),
    [({"kind": "entropy_only"}, 1.0), ({"kind": "ema"}, 1.0), ({"kind": "codebook_loss", "weight": 3.0}, 4.0)],
)
def test_chunks_add_up_to_the_whole(small_chunks, learning, factor):
    small_chunks(5)
    spec = SampleSpec("CT", 3, (5,), None, "float32")
    mean, scale = (1.0, -1.0, 0.0), (2.0, 0.5, 1.0)
    model = build(spec, {"kind": "identity"}, mean, scale, update=learning, temperature=0.7)
    array = np.random.default_rng(0).normal(size=(21, 3, 5)).astype(np.float32)
    result = evaluate(model, samples_of(array, spec), LOSS)

    normalised = (array - np.array(mean)[:, None]) / np.array(scale)[:, None]
    z = torch.from_numpy(normalised).permute(0, 2, 1).reshape(-1, 3)
    indices, distances, soft = naive(z, model.quantizer.codes, 0.7)
    p = soft.mean(dim=0)
    commitment, entropy = float(distances.sum()) / z.numel(), negative_entropy(p)
    # Without a network, what the decoder gives is the code itself.
    assert result.losses == {
        "total": pytest.approx(commitment + 0.25 * factor * commitment + 0.1 * entropy, rel=1e-5),
        "reconstruction": pytest.approx(commitment, rel=1e-5),
        "commitment": pytest.approx(commitment, rel=1e-5),
        "entropy": pytest.approx(entropy, rel=1e-5),
    }
    (level,) = result.levels
    assert level.counts == [indices.tolist().count(k) for k in range(6)]
    assert result.soft_entropies == [pytest.approx(-float((p * p.log()).sum()) / math.log(6), rel=1e-5)]
    own = -float((soft * soft.log()).sum(dim=1).mean()) / math.log(6)
    assert result.sample_entropies == [pytest.approx(own, rel=1e-5)]
    assert result.samples == 21


def test_a_convolution_on_classes_adds_up_to_the_whole(small_chunks):
    small_chunks(16)
    spec = SampleSpec("HW", 1, (8, 8), 5, "uint8")
    model = build(spec, CONVOLUTION, codebook_dim=4)
    array = np.random.default_rng(0).integers(0, 5, (13, 8, 8), dtype=np.uint8)
    result = evaluate(model, samples_of(array, spec), LOSS.model_copy(update={"reconstruction": "cross_entropy"}))

    x = torch.from_numpy(array).long()
    with torch.no_grad():
        z = model.latents(x)
        indices, distances, soft = naive(z.reshape(-1, 4), model.quantizer.codes)
        logits = model.decoder(model.quantizer.codes[indices.reshape(13, 16)], (8, 8))
        reconstruction = float(F.cross_entropy(logits.double(), x))
    commitment, entropy = float(distances.sum()) / z.numel(), negative_entropy(soft.mean(dim=0))
    assert result.losses == {
        "total": pytest.approx(reconstruction + 0.25 * commitment + 0.1 * entropy, rel=1e-4),
        "reconstruction": pytest.approx(reconstruction, rel=1e-4),
        "commitment": pytest.approx(commitment, rel=1e-4),
        "entropy": pytest.approx(entropy, rel=1e-4),
    }
    assert result.levels[0].counts == [indices.tolist().count(k) for k in range(6)]


def test_soft_entropy_is_of_the_pass_and_not_the_mean_of_batches(small_chunks):
    small_chunks(1)
    spec = SampleSpec("C", 1, (), None, "float32")
    model = build(spec, {"kind": "identity"}, codebook_size=2)
    with torch.no_grad():
        model.quantizer.codes.copy_(torch.tensor([[-10.0], [10.0]]))
    # Each chunk of 8 rows lies on one code and has no entropy of its own.
    array = np.repeat(np.array([[-10.0], [10.0]], dtype=np.float32), 8, axis=0)
    result = evaluate(model, samples_of(array, spec), LOSS)
    assert result.soft_entropies == [pytest.approx(1)]
    assert result.sample_entropies == [pytest.approx(0, abs=1e-6)]
    assert result.losses["entropy"] == pytest.approx(-math.log(2))
    assert result.levels[0].perplexity == pytest.approx(2)


def test_samples_weigh_the_same_in_a_short_last_chunk(small_chunks):
    small_chunks(1)
    spec = SampleSpec("C", 1, (), None, "float32")
    model = build(spec, {"kind": "identity"}, codebook_size=1)
    with torch.no_grad():
        model.quantizer.codes.zero_()
    array = np.array([[1.0]] * 8 + [[4.0]], dtype=np.float32)
    losses = evaluate(model, samples_of(array, spec), LOSS).losses
    assert losses["reconstruction"] == pytest.approx((8 * 1 + 16) / 9)
    assert losses["commitment"] == pytest.approx((8 * 1 + 16) / 9)


@pytest.mark.parametrize("training", [True, False])
def test_a_pass_leaves_the_model_as_it_was(small_chunks, training):
    small_chunks(16)
    spec = SampleSpec("CHW", 1, (8, 8), None, "float32")
    model = build(spec, CONVOLUTION, codebook_dim=4, update={"kind": "ema"}).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    array = np.random.default_rng(0).normal(size=(13, 1, 8, 8)).astype(np.float32)
    evaluate(model, samples_of(array, spec), LOSS)
    model.quantizer.update()
    assert {module.training for module in model.modules()} == {training}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_pass_that_is_broken_off_gives_the_mode_back(small_chunks):
    small_chunks(1)
    spec = SampleSpec("C", 2, (), None, "float32")
    model = build(spec, {"kind": "identity"}).train()
    passing = reconstruct(model, samples_of(np.zeros((20, 2), np.float32), spec), LOSS, "test")
    next(passing)
    assert not model.training
    passing.close()
    assert model.training


def test_chunks_hold_the_rows_in_order_and_what_decode_would_write(small_chunks):
    small_chunks(16)
    spec = SampleSpec("HWC", 1, (8, 8), None, "uint8")
    model = build(spec, CONVOLUTION, (100.0,), (50.0,), codebook_dim=4)
    array = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    numbers = np.random.default_rng(1).permutation(30)[:21]
    passed = list(reconstruct(model, samples_of(array, spec, numbers), LOSS, "test"))

    assert [len(chunk.rows) for chunk in passed] == [8, 8, 5]
    assert torch.equal(torch.cat([chunk.rows for chunk in passed]), torch.from_numpy(array[numbers]))
    x = torch.from_numpy(array[numbers]).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        prediction = model.decoder(model.quantizer.codes[model.encode(x)], (8, 8))
    expected = (prediction * 50 + 100).round().clamp(0, 255).permute(0, 2, 3, 1)
    restored = torch.cat([chunk.restored for chunk in passed])
    assert restored.dtype == torch.uint8
    # A number within rounding of one half may go either way.
    torch.testing.assert_close(restored.float(), expected, rtol=0, atol=1)
    assert (restored.float() == expected).float().mean() > 0.99


def level(counts, soft, squared_distance, elements):
    soft, squared_distance = torch.tensor(soft).double(), torch.tensor(squared_distance).double()
    return LevelStatistics(
        *(torch.tensor(counts), soft, torch.tensor(0.0), squared_distance, torch.tensor(elements)),
        *(torch.zeros(2), torch.tensor(0.0)),
    )


VECTOR = {"kind": "vector", "codebook_size": 6, "sample_entropy_weight": 0.5, "init": {"kind": "random"}}


@pytest.mark.parametrize(
    "quantizer",
    [
        VECTOR,
        {**VECTOR, "update": {"kind": "codebook_loss", "weight": 3.0}},
        {"kind": "residual", "levels": 2, "quantizer": VECTOR},
        {"kind": "product", "groups": 2, "quantizer": VECTOR},
        {"kind": "product", "groups": 2, "quantizer": {"kind": "residual", "levels": 2, "quantizer": VECTOR}},
        {"kind": "lfq", "bits": 4, "sample_entropy_weight": 0.5},
        {"kind": "product", "groups": 2, "quantizer": {"kind": "bsq", "bits": 3, "sample_entropy_weight": 0.5}},
    ],
    ids=lambda settings: settings["kind"],
)
def test_the_total_is_that_of_training_with_the_confidence_term(quantizer):
    spec = SampleSpec("C", 4, (), None, "float32")
    torch.manual_seed(0)
    settings = ModelSettings.model_validate({"encoder": {"kind": "mlp", "width": 8}, "quantizer": quantizer})
    model = Autoencoder(resolve_model(settings, spec), spec, (0.0,) * 4, (1.0,) * 4)
    array = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    total = evaluate(model, samples_of(array, spec), LOSS).losses["total"]
    with torch.no_grad():
        output = model.train()(torch.from_numpy(array))
        loss = (output.prediction - output.target).square().mean()
        loss = loss + 0.25 * output.quantizer.commitment_loss + 0.1 * output.quantizer.entropy_loss
    assert total == pytest.approx(float(loss), rel=1e-5)
    model.quantizer.sample_entropy_weight = 0.0
    assert evaluate(model, samples_of(array, spec), LOSS).losses["total"] < total - 1e-3


def test_raw_terms_are_averaged_over_levels():
    levels = [level([3, 1], [[2.0, 2.0]], 24.0, 12), level([4, 0], [[3.0, 1.0]], 8.0, 8)]
    commitment, entropy = raw_losses(levels)
    assert commitment == pytest.approx((24 / 12 + 8 / 8) / 2)
    assert entropy == pytest.approx((-math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / 2)


def test_the_entropies_of_factors_add_up():
    # Four vectors on a product of a scale of two values and one of three.
    factors = level([4, 0, 0, 0, 0, 0], [[2.0, 2.0, 0.0], [1.0, 2.0, 1.0]], 4.0, 8)
    expected = -math.log(2) + 0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)
    assert raw_losses([factors])[1] == pytest.approx(expected)


def test_shuffled_samples_get_the_indices_of_one_half_the_way_round(small_chunks):
    small_chunks(1)
    spec = SampleSpec("C", 1, (), None, "float32")
    model = build(spec, {"kind": "identity"}, codebook_size=4)
    with torch.no_grad():
        model.quantizer.codes.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    array = np.array([[0.1], [1.1], [2.1], [3.1]], dtype=np.float32)
    own, others = shuffled_loss(model.train(), samples_of(array, spec), LOSS)
    assert own == pytest.approx(0.01)
    assert others == pytest.approx((1.9**2 + 1.9**2 + 2.1**2 + 2.1**2) / 4)
    assert model.training


def test_shuffling_looks_at_samples_from_all_over(small_chunks):
    """The first chunk alone, of equal rows, would not tell."""
    small_chunks(1)
    spec = SampleSpec("C", 1, (), None, "float32")
    model = build(spec, {"kind": "identity"}, codebook_size=2)
    with torch.no_grad():
        model.quantizer.codes.copy_(torch.tensor([[0.0], [1.0]]))
    array = np.repeat(np.array([[0.0], [1.0]], dtype=np.float32), 50, axis=0)
    assert shuffled_loss(model, samples_of(array, spec), LOSS) == (0.0, 1.0)
    assert shuffled_loss(model, samples_of(array, spec, np.arange(1, 100, 3)), LOSS) == (0.0, 1.0)


def test_latents_are_those_that_a_pass_quantized(small_chunks):
    small_chunks(1)
    spec = SampleSpec("C", 3, (), None, "float32")
    model = build(spec, {"kind": "identity"})
    array = np.random.default_rng(0).normal(5, 2, size=(30, 3)).astype(np.float32)
    (found,) = evaluate(model, samples_of(array, spec), LOSS).latents
    indices, distances, _ = naive(torch.from_numpy(array), model.quantizer.codes)
    wide = array.astype(np.float64)
    assert found.mean.tolist() == pytest.approx(wide.mean(axis=0).tolist())
    assert found.variance == pytest.approx(((wide - wide.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert found.error == pytest.approx(float(distances.mean()))
    assert found.errors.tolist() == pytest.approx(np.bincount(indices, weights=distances, minlength=6).tolist())


@pytest.mark.parametrize("of", [1, 2, 3, 5])
def test_processes_take_chunks_in_turn_and_each_as_many(small_chunks, of):
    small_chunks(1)
    array = np.random.default_rng(0).standard_normal((3 * ROWS + 2, 4)).astype(np.float32)
    spec = SampleSpec("C", 4, (), None, "float32")
    model = build(spec, {"kind": "identity"})
    passed = [list(reconstruct(model, samples_of(array, spec), LOSS, "validate", rank, of)) for rank in range(of)]
    assert len({len(chunks) for chunks in passed}) == 1
    turns = [chunk for turn in zip(*passed, strict=True) for chunk in turn]
    assert torch.equal(torch.cat([chunk.rows for chunk in turns]), torch.from_numpy(array))
    empty = [chunk for chunk in turns if not len(chunk.rows)]
    assert len(empty) == -(-4 // of) * of - 4
    for chunk in empty:
        assert chunk.reconstruction_loss == chunk.commitment_loss == 0
        assert int(chunk.statistics[0].counts.sum()) == 0
