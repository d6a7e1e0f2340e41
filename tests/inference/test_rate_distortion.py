"""Rate-distortion of runs, compared with scikit-learn's k-means and Shannon's bound."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from tests import IDENTITY, Block, normal, save
from vqtool import load
from vqtool.config import RunSettings
from vqtool.data import Samples, open_dataset
from vqtool.inference.rate_distortion import N_INIT, rate_distortion
from vqtool.inference.tokenizer import Tokenizer
from vqtool.training import train

VECTOR = {"kind": "vector", "codebook_size": 8, "codebook_dim": "auto"}
QUANTIZERS: dict[str, Block] = {
    "vector": VECTOR,
    "residual": {"kind": "residual", "levels": 2, "quantizer": {**VECTOR, "codebook_size": 4}},
    "product": {"kind": "product", "groups": 2, "quantizer": VECTOR},
    "product of residuals": {
        "kind": "product",
        "groups": 2,
        "quantizer": {"kind": "residual", "levels": 2, "quantizer": {**VECTOR, "codebook_size": 3}},
    },
}
GAUSSIAN = {"kind": "synthetic", "samples": 2400, "source": {"kind": "gaussian", "dim": 2}}
# As many components as codes, so k-means has a single optimum.
MIXTURE = {**GAUSSIAN, "source": {"kind": "mixture", "components": 8, "dim": 2}}


def train_run(folder: Path, quantizer: Block, data: Block, encoder: Block = IDENTITY, steps: int = 60) -> Tokenizer:
    """Train a run and return its tokenizer."""
    blocks = {
        "name": "rate-distortion",
        "data": {"validation": 0.25, **data},
        "model": {"encoder": encoder, "quantizer": quantizer},
        "training": {"steps": steps, "batch_size": 200, "validate_every": max(1, steps // 2), "device": "cpu"},
    }
    train(RunSettings.model_validate(blocks), folder / "run")
    return load(folder / "run")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A run on a mixture of eight separate components."""
    return train_run(tmp_path_factory.mktemp("mixture"), VECTOR, MIXTURE, steps=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """A run of each quantizer with identity networks on Gaussian data, for which k-means finds good codes."""
    return {name: train_run(tmp_path_factory.mktemp("run"), block, GAUSSIAN) for name, block in QUANTIZERS.items()}


def latents(tokenizer: Tokenizer, samples: Samples) -> np.ndarray:
    """Return the latents (N, D) of samples, with identity networks."""
    return tokenizer.model.latents(samples.read(0, len(samples)))[:, 0].numpy()


def split_latents(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return the latents of the training and of the validation split."""
    dataset = open_dataset(tokenizer.settings.data, tokenizer.settings.seed)
    return latents(tokenizer, dataset.training), latents(tokenizer, dataset.validation)


def kmeans_residuals(training: np.ndarray, validation: np.ndarray, codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the residuals of both after scikit-learn's k-means on `training`."""
    fit = KMeans(codes, n_init=10, tol=0, random_state=0).fit(training)
    centres = fit.cluster_centers_.astype(np.float32)
    return training - centres[fit.predict(training)], validation - centres[fit.predict(validation)]


@pytest.mark.parametrize("name", ["vector", "product"])
def test_run_with_identity_networks_is_as_good_as_kmeans(runs: dict[str, Tokenizer], name: str) -> None:
    result = rate_distortion(runs[name])
    assert result.ratio is not None
    assert 0.95 < result.ratio < 1.08
    assert result.ratio == result.error / result.reference
    assert (result.n_init, result.fitted_on) == (N_INIT, 1800)


def test_error_is_the_quantization_error_on_the_evaluated_latents(runs: dict[str, Tokenizer]) -> None:
    tokenizer = runs["vector"]
    _, validation = split_latents(tokenizer)
    distances = np.square(validation[:, None].astype(np.float64) - tokenizer.codebook.numpy()).sum(axis=2)
    result = rate_distortion(tokenizer)
    assert result.error == pytest.approx(distances.min(axis=1).mean() / 2, rel=1e-6)
    assert result.error == pytest.approx(tokenizer.evaluate().evaluation.losses["reconstruction"], rel=1e-5)


def test_reference_does_not_depend_on_the_codes_of_the_run(runs: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = train_run(tmp_path, VECTOR, GAUSSIAN, steps=1)
    tokenizer.codebook.zero_()
    result = rate_distortion(tokenizer)
    _, validation = split_latents(tokenizer)
    assert result.error == pytest.approx(np.square(validation, dtype=np.float64).mean(), rel=1e-6)
    assert result.reference == rate_distortion(runs["vector"]).reference
    assert result.ratio == result.error / result.reference
    assert result.ratio > 3


# The reference


def test_reference_equals_scikit_learn_kmeans(mixture: Tokenizer) -> None:
    _, residual = kmeans_residuals(*split_latents(mixture), 8)
    assert rate_distortion(mixture).reference == pytest.approx(np.square(residual).mean(), rel=1e-4)


def test_reference_is_near_scikit_learn_with_many_local_minima(runs: dict[str, Tokenizer]) -> None:
    _, residual = kmeans_residuals(*split_latents(runs["vector"]), 8)
    assert rate_distortion(runs["vector"]).reference == pytest.approx(np.square(residual).mean(), rel=0.05)


def test_reference_of_levels_is_kmeans_on_residuals(runs: dict[str, Tokenizer]) -> None:
    _, residual = kmeans_residuals(*kmeans_residuals(*split_latents(runs["residual"]), 4), 4)
    result = rate_distortion(runs["residual"])
    assert result.reference == pytest.approx(np.square(residual).mean(), rel=0.02)


def test_reference_of_groups_is_kmeans_on_their_dimensions(runs: dict[str, Tokenizer]) -> None:
    training, validation = split_latents(runs["product"])
    residual = [kmeans_residuals(training[:, [group]], validation[:, [group]], 8)[1] for group in range(2)]
    assert rate_distortion(runs["product"]).reference == pytest.approx(np.square(residual).mean(), rel=0.02)


def test_reference_of_groups_of_levels(runs: dict[str, Tokenizer]) -> None:
    training, validation = split_latents(runs["product of residuals"])
    residual = [
        kmeans_residuals(*kmeans_residuals(training[:, [group]], validation[:, [group]], 3), 3)[1] for group in range(2)
    ]
    result = rate_distortion(runs["product of residuals"])
    assert result.reference == pytest.approx(np.square(residual).mean(), rel=0.02)


@pytest.mark.parametrize("quantizer", ["vector", "product"])
def test_no_reference_with_fewer_training_latents_than_codes(tmp_path: Path, quantizer: str) -> None:
    tokenizer = train_run(tmp_path, QUANTIZERS[quantizer], {**GAUSSIAN, "samples": 9}, steps=1)
    result = rate_distortion(tokenizer)
    assert (result.reference, result.ratio, result.fitted_on) == (None, None, 7)
    assert result.error >= 0


def test_no_ratio_if_the_reference_is_zero(tmp_path: Path) -> None:
    points = np.array([[x, y] for x in range(4) for y in range(2)], dtype=np.float32)
    path = save(tmp_path, np.repeat(points, 10, axis=0))
    data = {
        "kind": "tensors",
        "path": str(path),
        "validation": str(save(tmp_path, points, "validation")),
        "normalize": "none",
    }
    result = rate_distortion(train_run(tmp_path, VECTOR, data, steps=2))
    assert (result.reference, result.ratio) == (0, None)


def test_other_data_are_compared_with_kmeans_on_the_training_latents_of_the_run(
    runs: dict[str, Tokenizer], tmp_path: Path
) -> None:
    tokenizer, other = runs["vector"], 3 + normal(500, 2, seed=7)
    training, _ = split_latents(tokenizer)
    validation = tokenizer.model.latents(torch.from_numpy(other))[:, 0].numpy()
    result = rate_distortion(tokenizer, str(save(tmp_path, other, "other")))
    _, residual = kmeans_residuals(training, validation, 8)
    distances = np.square(validation[:, None].astype(np.float64) - tokenizer.codebook.numpy()).sum(axis=2)
    assert result.error == pytest.approx(distances.min(axis=1).mean() / 2, rel=1e-6)
    # Far outside the training latents, different local minima of k-means differ more.
    assert result.reference == pytest.approx(np.square(residual).mean(), rel=0.1)
    assert result.fitted_on == 1800


def test_training_latents_are_limited_to_evenly_spaced_samples(mixture: Tokenizer) -> None:
    training, validation = split_latents(mixture)
    result = rate_distortion(mixture, max_training_latents=600)
    assert result.fitted_on == 600
    assert result.reference == pytest.approx(
        np.square(kmeans_residuals(training[::3], validation, 8)[1]).mean(), rel=1e-4
    )


def test_every_token_is_a_latent(tmp_path: Path) -> None:
    path = save(tmp_path, normal(40, 2, 12))
    tokenizer = train_run(tmp_path, VECTOR, {"kind": "tensors", "path": str(path), "layout": "CT"}, steps=2)
    result = rate_distortion(tokenizer)
    assert result.fitted_on == 30 * 12
    assert result.error == pytest.approx(tokenizer.evaluate().evaluation.losses["reconstruction"], rel=1e-5)


def test_projected_latents_are_compared_in_code_space(tmp_path: Path) -> None:
    source = {"kind": "gaussian", "dim": 4}
    tokenizer = train_run(tmp_path, {**VECTOR, "codebook_dim": 2}, {**GAUSSIAN, "source": source}, steps=2)
    project = tokenizer.model.quantizer.project_in
    training, validation = (project(torch.from_numpy(part)).numpy() for part in split_latents(tokenizer))
    distances = np.square(validation[:, None].astype(np.float64) - tokenizer.codebook.numpy()).sum(axis=2)
    result = rate_distortion(tokenizer)
    assert result.error == pytest.approx(distances.min(axis=1).mean() / 2, rel=1e-5)
    assert result.reference == pytest.approx(np.square(kmeans_residuals(training, validation, 8)[1]).mean(), rel=0.02)


# Shannon's bound


@pytest.mark.parametrize(
    ("name", "bits"), [("vector", 3), ("residual", 4), ("product", 6), ("product of residuals", 4 * np.log2(3))]
)
def test_mse_is_at_least_the_shannon_bound(runs: dict[str, Tokenizer], name: str, bits: float) -> None:
    result, report = rate_distortion(runs[name]), runs[name].evaluate()
    # Distortion 2^(-2 R) at R bits per value; a sample has two values.
    assert result.shannon_bound == pytest.approx(2 ** (-2 * bits / 2))
    assert report.bits_per_sample == pytest.approx(bits)
    assert report.reconstruction.mse >= result.shannon_bound


def test_no_bound_for_other_sources(mixture: Tokenizer, tmp_path: Path) -> None:
    assert rate_distortion(mixture).shannon_bound is None
    tensors = {"kind": "tensors", "path": str(save(tmp_path, normal(100, 2)))}
    assert rate_distortion(train_run(tmp_path, VECTOR, tensors, steps=1)).shannon_bound is None


def test_no_bound_for_given_data(runs: dict[str, Tokenizer], tmp_path: Path) -> None:
    codes = runs["vector"].decode(np.arange(8)[:, None])
    path = str(save(tmp_path, codes.numpy()))
    assert runs["vector"].evaluate(path).reconstruction.mse == pytest.approx(0, abs=1e-9)
    assert rate_distortion(runs["vector"], path).shannon_bound is None
