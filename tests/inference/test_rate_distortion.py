"""A run beside k-means on its own latents, checked against scikit-learn's, and beside Shannon's bound."""

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
# As many parts as codes: k-means has one optimum.
MIXTURE = {**GAUSSIAN, "source": {"kind": "mixture", "components": 8, "dim": 2}}


def make(folder: Path, quantizer: Block, data: Block, encoder: Block = IDENTITY, steps: int = 60) -> Tokenizer:
    """A run whose codes start from all that validation asks for, and learn on."""
    blocks = {
        "name": "made",
        "data": {"validation": 0.25, **data},
        "model": {"encoder": encoder, "quantizer": quantizer},
        "training": {"steps": steps, "batch_size": 200, "validate_every": max(1, steps // 2), "device": "cpu"},
    }
    train(RunSettings.model_validate(blocks), folder / "run")
    return load(folder / "run")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A run on eight parts, far from each other."""
    return make(tmp_path_factory.mktemp("mixture"), VECTOR, MIXTURE, steps=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """A run of each quantizer, without a network, on numbers whose optimum is known well."""
    return {name: make(tmp_path_factory.mktemp("run"), block, GAUSSIAN) for name, block in QUANTIZERS.items()}


def latents(tokenizer: Tokenizer, samples: Samples) -> np.ndarray:
    """Normalised vectors (N, D), as a run without a network quantizes them."""
    return tokenizer.model.latents(samples.read(0, len(samples)))[:, 0].numpy()


def parts(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Latents to fit to, and to judge by."""
    dataset = open_dataset(tokenizer.settings.data, tokenizer.settings.seed)
    return latents(tokenizer, dataset.training), latents(tokenizer, dataset.validation)


def left_over(training: np.ndarray, judged: np.ndarray, codes: int) -> tuple[np.ndarray, np.ndarray]:
    """What scikit-learn's k-means on `training` leaves over of both."""
    found = KMeans(codes, n_init=10, tol=0, random_state=0).fit(training)
    centres = found.cluster_centers_.astype(np.float32)
    return training - centres[found.predict(training)], judged - centres[found.predict(judged)]


@pytest.mark.parametrize("name", ["vector", "product"])
def test_without_a_network_a_run_is_about_as_good_as_k_means(runs: dict[str, Tokenizer], name: str) -> None:
    found = rate_distortion(runs[name])
    assert found.ratio is not None
    assert 0.95 < found.ratio < 1.08
    assert found.ratio == found.error / found.reference
    assert (found.n_init, found.fitted_on) == (N_INIT, 1800)


def test_the_error_is_that_of_the_codes_on_the_judged_latents(runs: dict[str, Tokenizer]) -> None:
    tokenizer = runs["vector"]
    _, judged = parts(tokenizer)
    distances = np.square(judged[:, None].astype(np.float64) - tokenizer.codebook.numpy()).sum(axis=2)
    found = rate_distortion(tokenizer)
    assert found.error == pytest.approx(distances.min(axis=1).mean() / 2, rel=1e-6)
    assert found.error == pytest.approx(tokenizer.evaluate().evaluation.losses["reconstruction"], rel=1e-5)


def test_the_codes_of_the_run_do_not_touch_the_reference(runs: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = make(tmp_path, VECTOR, GAUSSIAN, steps=1)
    tokenizer.codebook.zero_()
    found = rate_distortion(tokenizer)
    _, judged = parts(tokenizer)
    assert found.error == pytest.approx(np.square(judged, dtype=np.float64).mean(), rel=1e-6)
    assert found.reference == rate_distortion(runs["vector"]).reference
    assert found.ratio == found.error / found.reference
    assert found.ratio > 3


# The reference


def test_the_reference_is_k_means(mixture: Tokenizer) -> None:
    _, left = left_over(*parts(mixture), 8)
    assert rate_distortion(mixture).reference == pytest.approx(np.square(left).mean(), rel=1e-4)


def test_where_there_are_many_minima_it_is_about_as_good(runs: dict[str, Tokenizer]) -> None:
    _, left = left_over(*parts(runs["vector"]), 8)
    assert rate_distortion(runs["vector"]).reference == pytest.approx(np.square(left).mean(), rel=0.05)


def test_of_levels_it_is_k_means_on_what_the_levels_before_left_over(runs: dict[str, Tokenizer]) -> None:
    _, left = left_over(*left_over(*parts(runs["residual"]), 4), 4)
    found = rate_distortion(runs["residual"])
    assert found.reference == pytest.approx(np.square(left).mean(), rel=0.02)


def test_of_groups_it_is_k_means_on_the_dimensions_of_each(runs: dict[str, Tokenizer]) -> None:
    training, judged = parts(runs["product"])
    left = [left_over(training[:, [group]], judged[:, [group]], 8)[1] for group in range(2)]
    assert rate_distortion(runs["product"]).reference == pytest.approx(np.square(left).mean(), rel=0.02)


def test_of_groups_of_levels_it_is_both(runs: dict[str, Tokenizer]) -> None:
    training, judged = parts(runs["product of residuals"])
    left = [left_over(*left_over(training[:, [group]], judged[:, [group]], 3), 3)[1] for group in range(2)]
    found = rate_distortion(runs["product of residuals"])
    assert found.reference == pytest.approx(np.square(left).mean(), rel=0.02)


@pytest.mark.parametrize("quantizer", ["vector", "product"])
def test_there_is_none_where_latents_are_fewer_than_codes(tmp_path: Path, quantizer: str) -> None:
    tokenizer = make(tmp_path, QUANTIZERS[quantizer], {**GAUSSIAN, "samples": 9}, steps=1)
    found = rate_distortion(tokenizer)
    assert (found.reference, found.ratio, found.fitted_on) == (None, None, 7)
    assert found.error >= 0


def test_as_many_latents_as_codes_are_enough_and_to_no_error_there_is_no_ratio(tmp_path: Path) -> None:
    points = np.array([[x, y] for x in range(4) for y in range(2)], dtype=np.float32)
    path = save(tmp_path, np.repeat(points, 10, axis=0))
    data = {
        "kind": "tensors",
        "path": str(path),
        "validation": str(save(tmp_path, points, "each")),
        "normalize": "none",
    }
    found = rate_distortion(make(tmp_path, VECTOR, data, steps=2))
    assert (found.reference, found.ratio) == (0, None)


def test_it_judges_other_data_by_the_runs_own_training_latents(runs: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer, other = runs["vector"], 3 + normal(500, 2, seed=7)
    training, _ = parts(tokenizer)
    judged = tokenizer.model.latents(torch.from_numpy(other))[:, 0].numpy()
    found = rate_distortion(tokenizer, str(save(tmp_path, other, "other")))
    _, left = left_over(training, judged, 8)
    distances = np.square(judged[:, None].astype(np.float64) - tokenizer.codebook.numpy()).sum(axis=2)
    assert found.error == pytest.approx(distances.min(axis=1).mean() / 2, rel=1e-6)
    # Far outside of the training latents the choice of a minimum matters more.
    assert found.reference == pytest.approx(np.square(left).mean(), rel=0.1)
    assert found.fitted_on == 1800


def test_of_many_latents_some_that_are_evenly_spaced_are_enough(
    mixture: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqtool.inference.rate_distortion._SAMPLE", 600)
    training, judged = parts(mixture)
    found = rate_distortion(mixture)
    assert found.fitted_on == 600
    assert found.reference == pytest.approx(np.square(left_over(training[::3], judged, 8)[1]).mean(), rel=1e-4)


def test_every_position_is_a_latent(tmp_path: Path) -> None:
    path = save(tmp_path, normal(40, 2, 12))
    tokenizer = make(tmp_path, VECTOR, {"kind": "tensors", "path": str(path), "layout": "CT"}, steps=2)
    found = rate_distortion(tokenizer)
    assert found.fitted_on == 30 * 12
    assert found.error == pytest.approx(tokenizer.evaluate().evaluation.losses["reconstruction"], rel=1e-5)


def test_projected_codes_are_compared_in_their_own_space(tmp_path: Path) -> None:
    source = {"kind": "gaussian", "dim": 4}
    tokenizer = make(tmp_path, {**VECTOR, "codebook_dim": 2}, {**GAUSSIAN, "source": source}, steps=2)
    project = tokenizer.model.quantizer.project_in
    training, judged = (project(torch.from_numpy(part)).numpy() for part in parts(tokenizer))
    distances = np.square(judged[:, None].astype(np.float64) - tokenizer.codebook.numpy()).sum(axis=2)
    found = rate_distortion(tokenizer)
    assert found.error == pytest.approx(distances.min(axis=1).mean() / 2, rel=1e-5)
    assert found.reference == pytest.approx(np.square(left_over(training, judged, 8)[1]).mean(), rel=0.02)


# Shannon's bound


@pytest.mark.parametrize(
    ("name", "bits"), [("vector", 3), ("residual", 4), ("product", 6), ("product of residuals", 4 * np.log2(3))]
)
def test_no_code_of_a_gaussian_goes_below_the_bound(runs: dict[str, Tokenizer], name: str, bits: float) -> None:
    found, report = rate_distortion(runs[name]), runs[name].evaluate()
    # Distortion 2^(-2 R) at R bits a number; a sample has two.
    assert found.shannon_bound == pytest.approx(2 ** (-2 * bits / 2))
    assert report.bits_per_sample == pytest.approx(bits)
    assert report.fidelity.mse >= found.shannon_bound


def test_other_sources_have_no_bound(mixture: Tokenizer, tmp_path: Path) -> None:
    assert rate_distortion(mixture).shannon_bound is None
    tensors = {"kind": "tensors", "path": str(save(tmp_path, normal(100, 2)))}
    assert rate_distortion(make(tmp_path, VECTOR, tensors, steps=1)).shannon_bound is None


def test_data_that_are_not_the_sources_have_no_bound(runs: dict[str, Tokenizer], tmp_path: Path) -> None:
    codes = runs["vector"].decode(np.arange(8)[:, None])
    path = str(save(tmp_path, codes.numpy()))
    assert runs["vector"].evaluate(path).fidelity.mse == pytest.approx(0, abs=1e-9)
    assert rate_distortion(runs["vector"], path).shannon_bound is None
