"""Report inputs: the statistics of one pass over the data, compared with those of all indices at once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests import CONV1D, MLP, make_run, normal
from vqtool.data import Samples
from vqtool.inference.tokenizer import Tokenizer, load
from vqtool.inspection.report.inputs import ModelSamples, NearestTokens, collect_data_pass, level_latents


def load_with_data(run: Path) -> tuple[Tokenizer, Samples]:
    tokenizer = load(run)
    return tokenizer, tokenizer.open_scanned(str(run.parent / "data.npy"), None)


@pytest.mark.parametrize("kind", ["images", "tiles", "sequences", "vectors", "ids"])
def test_counts_equal_those_of_encoded_indices(kind: str, runs: dict[str, Path]) -> None:
    tokenizer, samples = load_with_data(runs[kind])
    indices = tokenizer.encode(np.load(runs[kind].parent / "data.npy")).numpy()
    sizes = tokenizer.model.quantizer.codebook_sizes
    data_pass = collect_data_pass(tokenizer, samples)
    for level, (usage, size) in enumerate(zip(data_pass.counter.levels, sizes, strict=True)):
        level_indices = indices.reshape(-1, len(sizes))[:, level]
        assert usage.counts == np.bincount(level_indices, minlength=size).tolist()
        assert len(data_pass.latents[level]) == len(level_indices)


@pytest.mark.parametrize("kind", ["images", "ids"])
def test_nearest_tokens_have_the_code_and_ascending_distances(kind: str, runs: dict[str, Path]) -> None:
    tokenizer, samples = load_with_data(runs[kind])
    data_pass = collect_data_pass(tokenizer, samples)
    indices = tokenizer.encode(np.load(runs[kind].parent / "data.npy")).reshape(-1, len(data_pass.codebooks)).numpy()
    assert len(data_pass.nearest_tokens) == len(data_pass.codebooks)
    for level, nearest_tokens in enumerate(data_pass.nearest_tokens):
        codes = indices[:, level]
        distances = ((data_pass.latents[level] - data_pass.codebooks[level][codes]) ** 2).sum(axis=1)
        for code in np.unique(codes):
            tokens = nearest_tokens[code][nearest_tokens[code] >= 0]
            hits = np.flatnonzero(codes == code)
            assert len(tokens) == min(6, len(hits))
            assert np.allclose(distances[tokens], np.sort(distances[hits])[: len(tokens)])
            assert (codes[tokens] == code).all()


@pytest.mark.parametrize("block", [1, 7, 64, 500])
def test_nearest_tokens_equal_a_stable_sort_for_any_block_size(block: int) -> None:
    random = np.random.default_rng(0)
    codes, distances = random.integers(0, 9, 500), random.integers(0, 50, 500).astype(float)
    codes[codes == 4] = 5
    nearest = NearestTokens(9, 6)
    for start in range(0, 500, block):
        rows = slice(start, start + block)
        nearest.add(codes[rows], distances[rows], 1_000 + np.arange(500)[rows])
    for code in range(9):
        hits = np.flatnonzero(codes == code)
        expected = hits[np.argsort(distances[hits], kind="stable")][:6]
        count = len(expected)
        assert nearest.tokens[code, :count].tolist() == (1_000 + expected).tolist()
        assert nearest.distances[code, :count].tolist() == distances[expected].tolist()
        assert (nearest.tokens[code, count:] == -1).all()


def test_latents_are_kept_at_regular_intervals(runs: dict[str, Path]) -> None:
    tokenizer, samples = load_with_data(runs["images"])
    latents = collect_data_pass(tokenizer, samples).latents[0]
    step = -(-len(latents) // 100)
    assert np.array_equal(collect_data_pass(tokenizer, samples, max_latents=100).latents[0], latents[::step])


@pytest.mark.parametrize(
    "quantizer",
    [
        {"kind": "product", "groups": 2, "quantizer": {"kind": "vector", "codebook_size": 8, "codebook_dim": 3}},
        {
            "kind": "product",
            "groups": 2,
            "quantizer": {"kind": "residual", "levels": 2, "quantizer": {"kind": "vector", "codebook_size": 8}},
        },
        {"kind": "residual", "levels": 3, "quantizer": {"kind": "vector", "codebook_size": 8}},
    ],
    ids=["product", "product of residual", "residual"],
)
def test_the_index_of_a_level_is_the_code_nearest_to_its_latent(quantizer: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    tokenizer = load(make_run(tmp_path, normal(40, 12), MLP, quantizer=quantizer))
    z = tokenizer.model.latents(torch.from_numpy(normal(40, 12)))
    indices = tokenizer.model.quantizer.encode(z).flatten(0, 1)
    preprocessed = tokenizer.model.quantizer.preprocess(z).flatten(0, 1)
    codebooks = list(tokenizer.codebook)
    latents = level_latents(preprocessed, indices, codebooks)
    assert len(latents) == len(codebooks)
    for level, (vectors, codes) in enumerate(zip(latents, codebooks, strict=True)):
        assert torch.equal(torch.cdist(vectors.double(), codes.double()).argmin(dim=1), indices[:, level])


def test_a_codebook_too_large_to_draw_is_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path, normal(20, 2, 32), CONV1D, quantizer={"kind": "bsq", "bits": 18}, layout="CT")
    data_pass = collect_data_pass(*load_with_data(run))
    assert (data_pass.codebooks, data_pass.latents, data_pass.nearest_tokens) == ([], [], [])
    assert data_pass.counter.levels[0].tokens == 20 * 16


def test_row_indices_refer_to_the_users_array(model_samples: dict[str, ModelSamples], runs: dict[str, Path]) -> None:
    images, array = model_samples["images"], np.load(runs["images"].parent / "data.npy")
    assert images.samples.row_indices is not None
    assert np.array_equal(images.take_rows([2, 0]).numpy(), array[[images.row_index(2), images.row_index(0)]])
    assert np.array_equal(images.preview_rows.numpy(), array[[images.row_index(sample) for sample in range(6)]])
