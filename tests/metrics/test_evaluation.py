"""Evaluation over chunks, compared with the same computation over all samples at once."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vqtool.data import Samples, SampleSpec
from vqtool.data.rows import NumpyRows
from vqtool.metrics import evaluation
from vqtool.metrics.evaluation import evaluate, iter_reconstructions, shuffled_loss, unweighted_losses
from vqtool.models.autoencoder import Autoencoder, ModelSettings, resolve_model
from vqtool.models.losses import LossSettings
from vqtool.quantizers import LevelStatistics

ROWS = 8  # of a chunk, with `small_chunks`
LOSS = LossSettings(reconstruction="mse", commitment=0.25, entropy=0.1)
CONVOLUTION = {"kind": "conv2d", "width": 8, "downsamples": 1, "res_blocks": 1}


@pytest.fixture
def small_chunks(monkeypatch):
    """Set the size of chunks to 8 rows: no argument of `evaluate` reaches it, and it is up to 4096 rows otherwise."""
    monkeypatch.setattr(evaluation, "chunk_rows", lambda model, size: ROWS)


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
    """Return indices, squared distances to the nearest codes, and soft assignments of z (N, D), in float64."""
    z, codes = z.double(), codes.detach().double()
    d = (z[:, None] - codes).square().sum(dim=2)
    weights = torch.exp(-d / temperature)
    return d.argmin(dim=1), d.min(dim=1).values, weights / weights.sum(dim=1, keepdim=True)


def negative_entropy(p):
    return float((p * torch.log(p + 1e-10)).sum())


@pytest.mark.parametrize(
    ("update", "factor"),
    [({"kind": "entropy_only"}, 1.0), ({"kind": "ema"}, 1.0), ({"kind": "codebook_loss", "weight": 3.0}, 4.0)],
)
@pytest.mark.usefixtures("small_chunks")
def test_evaluation_over_chunks_equals_the_formulas(update, factor):
    spec = SampleSpec("CT", 3, (5,), None, "float32")
    mean, scale = (1.0, -1.0, 0.0), (2.0, 0.5, 1.0)
    model = build(spec, {"kind": "identity"}, mean, scale, update=update, temperature=0.7)
    array = np.random.default_rng(0).normal(size=(21, 3, 5)).astype(np.float32)
    result = evaluate(model, samples_of(array, spec), LOSS)

    normalised = (array - np.array(mean)[:, None]) / np.array(scale)[:, None]
    z = torch.from_numpy(normalised).permute(0, 2, 1).reshape(-1, 3)
    indices, distances, soft = naive(z, model.quantizer.codes, 0.7)
    p = soft.mean(dim=0)
    commitment, entropy = float(distances.sum()) / z.numel(), negative_entropy(p)
    # With identity networks, the decoder output is the code.
    assert result.losses == {
        "total": pytest.approx(commitment + 0.25 * factor * commitment + 0.1 * entropy, rel=1e-5),
        "reconstruction": pytest.approx(commitment, rel=1e-5),
        "commitment": pytest.approx(commitment, rel=1e-5),
        "entropy": pytest.approx(entropy, rel=1e-5),
    }
    (level,) = result.levels
    assert level.counts == [indices.tolist().count(k) for k in range(6)]
    assert result.soft_entropies == [pytest.approx(-float((p * p.log()).sum()) / math.log(6), rel=1e-5)]
    sample_entropy = -float((soft * soft.log()).sum(dim=1).mean()) / math.log(6)
    assert result.sample_entropies == [pytest.approx(sample_entropy, rel=1e-5)]
    assert result.samples == 21


@pytest.mark.usefixtures("small_chunks")
def test_evaluation_of_a_convolutional_model_on_classes():
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


@pytest.mark.usefixtures("small_chunks")
def test_soft_entropy_is_of_the_pass_not_the_mean_over_chunks():
    spec = SampleSpec("C", 1, (), None, "float32")
    model = build(spec, {"kind": "identity"}, codebook_size=2)
    with torch.no_grad():
        model.quantizer.codes.copy_(torch.tensor([[-10.0], [10.0]]))
    # All rows of a chunk are equal to one code, so the entropy of each chunk is 0.
    array = np.repeat(np.array([[-10.0], [10.0]], dtype=np.float32), 8, axis=0)
    result = evaluate(model, samples_of(array, spec), LOSS)
    assert result.soft_entropies == [pytest.approx(1)]
    assert result.sample_entropies == [pytest.approx(0, abs=1e-6)]
    assert result.losses["entropy"] == pytest.approx(-math.log(2))
    assert result.levels[0].perplexity == pytest.approx(2)


@pytest.mark.usefixtures("small_chunks")
def test_samples_have_equal_weight_in_a_short_last_chunk():
    spec = SampleSpec("C", 1, (), None, "float32")
    model = build(spec, {"kind": "identity"}, codebook_size=1)
    with torch.no_grad():
        model.quantizer.codes.zero_()
    array = np.array([[1.0]] * 8 + [[4.0]], dtype=np.float32)
    losses = evaluate(model, samples_of(array, spec), LOSS).losses
    assert losses["reconstruction"] == pytest.approx((8 * 1 + 16) / 9)
    assert losses["commitment"] == pytest.approx((8 * 1 + 16) / 9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("small_chunks")
def test_evaluate_does_not_change_the_model(training):
    spec = SampleSpec("CHW", 1, (8, 8), None, "float32")
    model = build(spec, CONVOLUTION, codebook_dim=4, update={"kind": "ema"}).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    array = np.random.default_rng(0).normal(size=(13, 1, 8, 8)).astype(np.float32)
    evaluate(model, samples_of(array, spec), LOSS)
    model.quantizer.update()
    assert {module.training for module in model.modules()} == {training}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.usefixtures("small_chunks")
def test_interrupted_pass_restores_the_training_mode():
    spec = SampleSpec("C", 2, (), None, "float32")
    model = build(spec, {"kind": "identity"}).train()
    passing = iter_reconstructions(model, samples_of(np.zeros((20, 2), np.float32), spec), LOSS, "test")
    next(passing)
    assert not model.training
    passing.close()
    assert model.training


@pytest.mark.usefixtures("small_chunks")
def test_chunks_hold_the_rows_in_order_and_the_decoded_rows():
    spec = SampleSpec("HWC", 1, (8, 8), None, "uint8")
    model = build(spec, CONVOLUTION, (100.0,), (50.0,), codebook_dim=4)
    array = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    numbers = np.random.default_rng(1).permutation(30)[:21]
    chunks = list(iter_reconstructions(model, samples_of(array, spec, numbers), LOSS, "test"))

    assert [len(chunk.rows) for chunk in chunks] == [8, 8, 5]
    assert torch.equal(torch.cat([chunk.rows for chunk in chunks]), torch.from_numpy(array[numbers]))
    x = torch.from_numpy(array[numbers]).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        prediction = model.decoder(model.quantizer.codes[model.encode(x)], (8, 8))
    expected = (prediction * 50 + 100).round().clamp(0, 255).permute(0, 2, 3, 1)
    decoded = torch.cat([chunk.decoded for chunk in chunks])
    assert decoded.dtype == torch.uint8
    # A value within rounding errors of one half can be rounded up or down.
    torch.testing.assert_close(decoded.float(), expected, rtol=0, atol=1)
    assert (decoded.float() == expected).float().mean() > 0.99


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
def test_total_equals_the_training_loss_with_sample_entropy(quantizer):
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


def test_unweighted_losses_are_averaged_over_levels():
    levels = [level([3, 1], [[2.0, 2.0]], 24.0, 12), level([4, 0], [[3.0, 1.0]], 8.0, 8)]
    commitment, entropy = unweighted_losses(levels)
    assert commitment == pytest.approx((24 / 12 + 8 / 8) / 2)
    assert entropy == pytest.approx((-math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / 2)


def test_entropies_of_factors_add_up():
    # Four vectors, quantized by two factors with two and three values.
    factors = level([4, 0, 0, 0, 0, 0], [[2.0, 2.0, 0.0], [1.0, 2.0, 1.0]], 4.0, 8)
    expected = -math.log(2) + 0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)
    assert unweighted_losses([factors])[1] == pytest.approx(expected)


@pytest.mark.usefixtures("small_chunks")
def test_shuffled_loss_rolls_indices_by_half_the_samples():
    spec = SampleSpec("C", 1, (), None, "float32")
    model = build(spec, {"kind": "identity"}, codebook_size=4)
    with torch.no_grad():
        model.quantizer.codes.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    array = np.array([[0.1], [1.1], [2.1], [3.1]], dtype=np.float32)
    loss, shuffled = shuffled_loss(model.train(), samples_of(array, spec), LOSS)
    assert loss == pytest.approx(0.01)
    assert shuffled == pytest.approx((1.9**2 + 1.9**2 + 2.1**2 + 2.1**2) / 4)
    assert model.training


@pytest.mark.usefixtures("small_chunks")
def test_shuffled_loss_uses_evenly_spaced_samples():
    """The first chunk consists of equal rows, for which shuffling changes nothing."""
    spec = SampleSpec("C", 1, (), None, "float32")
    model = build(spec, {"kind": "identity"}, codebook_size=2)
    with torch.no_grad():
        model.quantizer.codes.copy_(torch.tensor([[0.0], [1.0]]))
    array = np.repeat(np.array([[0.0], [1.0]], dtype=np.float32), 50, axis=0)
    assert shuffled_loss(model, samples_of(array, spec), LOSS) == (0.0, 1.0)
    assert shuffled_loss(model, samples_of(array, spec, np.arange(1, 100, 3)), LOSS) == (0.0, 1.0)


@pytest.mark.usefixtures("small_chunks")
def test_latent_statistics_of_a_pass():
    spec = SampleSpec("C", 3, (), None, "float32")
    model = build(spec, {"kind": "identity"})
    array = np.random.default_rng(0).normal(5, 2, size=(30, 3)).astype(np.float32)
    (statistics,) = evaluate(model, samples_of(array, spec), LOSS).latent_statistics
    indices, distances, _ = naive(torch.from_numpy(array), model.quantizer.codes)
    array64 = array.astype(np.float64)
    assert statistics.mean.tolist() == pytest.approx(array64.mean(axis=0).tolist())
    assert statistics.variance == pytest.approx(((array64 - array64.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert statistics.quantization_error == pytest.approx(float(distances.mean()))
    assert statistics.error_per_code.tolist() == pytest.approx(
        np.bincount(indices, weights=distances, minlength=6).tolist()
    )


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.usefixtures("small_chunks")
def test_ranks_take_chunks_in_turn_and_get_equally_many(world_size):
    array = np.random.default_rng(0).standard_normal((3 * ROWS + 2, 4)).astype(np.float32)
    spec = SampleSpec("C", 4, (), None, "float32")
    model = build(spec, {"kind": "identity"})
    samples = samples_of(array, spec)
    by_rank = [
        list(iter_reconstructions(model, samples, LOSS, "validate", rank, world_size)) for rank in range(world_size)
    ]
    assert len({len(chunks) for chunks in by_rank}) == 1
    in_turn = [chunk for chunks in zip(*by_rank, strict=True) for chunk in chunks]
    assert torch.equal(torch.cat([chunk.rows for chunk in in_turn]), torch.from_numpy(array))
    empty = [chunk for chunk in in_turn if not len(chunk.rows)]
    assert len(empty) == -(-4 // world_size) * world_size - 4
    for chunk in empty:
        assert chunk.reconstruction_loss == chunk.commitment_loss == 0
        assert int(chunk.statistics[0].counts.sum()) == 0
