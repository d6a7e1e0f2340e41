"""The one pass: what it keeps against what encoding everything at once gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests import CONV1D, MLP, make_run, normal
from vqtool.data import Samples
from vqtool.inference.tokenizer import Tokenizer, load
from vqtool.inspection.report import collector
from vqtool.inspection.report.collector import collect, level_vectors
from vqtool.inspection.report.inputs import Seen


def opened(run: Path) -> tuple[Tokenizer, Samples]:
    tokenizer = load(run)
    return tokenizer, tokenizer.open_checked(str(run.parent / "data.npy"), None)


@pytest.mark.parametrize("kind", ["images", "tiles", "sequences", "vectors", "ids"])
def test_counts_are_those_of_encoding(kind: str, runs: dict[str, Path]) -> None:
    tokenizer, samples = opened(runs[kind])
    indices = tokenizer.encode(np.load(runs[kind].parent / "data.npy")).numpy()
    sizes = tokenizer.model.quantizer.codebook_sizes
    collected = collect(tokenizer, samples)
    for level, (usage, size) in enumerate(zip(collected.tally.levels, sizes, strict=True)):
        own = indices.reshape(-1, len(sizes))[:, level]
        assert usage.counts == np.bincount(own, minlength=size).tolist()
        assert len(collected.latents[level]) == len(own)


@pytest.mark.parametrize("kind", ["images", "ids"])
def test_places_are_tokens_of_the_code_nearest_first(kind: str, runs: dict[str, Path]) -> None:
    tokenizer, samples = opened(runs[kind])
    collected = collect(tokenizer, samples)
    indices = tokenizer.encode(np.load(runs[kind].parent / "data.npy")).reshape(-1, len(collected.codes)).numpy()
    assert len(collected.places) == len(collected.codes)
    for level, places in enumerate(collected.places):
        chosen = indices[:, level]
        distances = ((collected.latents[level] - collected.codes[level][chosen]) ** 2).sum(axis=1)
        for code in np.unique(chosen):
            own, kept = np.flatnonzero(chosen == code), places[code][places[code] >= 0]
            assert len(kept) == min(6, len(own))
            assert np.allclose(distances[kept], np.sort(distances[own])[: len(kept)])
            assert (chosen[kept] == code).all()


def test_latents_are_spread_evenly_over_the_pass(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, samples = opened(runs["images"])
    whole = collect(tokenizer, samples).latents[0]
    monkeypatch.setattr(collector, "_LATENTS", 100)
    step = -(-len(whole) // 100)
    assert np.array_equal(collect(tokenizer, samples).latents[0], whole[::step])


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
def test_each_level_sees_what_it_chose_its_code_for(quantizer: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    """Its code is the nearest one to that."""
    tokenizer = load(make_run(tmp_path, normal(40, 12), MLP, quantizer=quantizer))
    vectors = tokenizer.model.latents(torch.from_numpy(normal(40, 12)))
    indices = tokenizer.model.quantizer.encode(vectors).flatten(0, 1)
    preprocessed = tokenizer.model.quantizer.preprocess(vectors).flatten(0, 1)
    codes = list(tokenizer.codebook)
    seen = level_vectors(preprocessed, indices, codes)
    assert len(seen) == len(codes)
    for level, (own, codebook) in enumerate(zip(seen, codes, strict=True)):
        assert torch.equal(torch.cdist(own.double(), codebook.double()).argmin(dim=1), indices[:, level])


def test_a_codebook_too_large_to_be_drawn_is_counted_all_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path, normal(20, 2, 32), CONV1D, quantizer={"kind": "bsq", "bits": 18}, layout="CT")
    collected = collect(*opened(run))
    assert (collected.codes, collected.latents, collected.places) == ([], [], [])
    assert collected.tally.levels[0].tokens == 20 * 16


def test_rows_have_the_numbers_of_the_users_array(seen: dict[str, Seen], runs: dict[str, Path]) -> None:
    own, array = seen["images"], np.load(runs["images"].parent / "data.npy")
    assert own.samples.numbers is not None
    numbers = [own.row_number(sample) for sample in (2, 0)]
    assert np.array_equal(own.rows([2, 0]).numpy(), array[numbers])
    assert np.array_equal(own.shown.numpy(), array[[own.row_number(sample) for sample in range(6)]])
