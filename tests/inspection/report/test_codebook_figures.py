"""The figures of hits per code and the codebook map."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vqtool.inspection.report.codebook_figures import (
    codebook_map_figure,
    codes_by_hits,
    principal_components,
    usage_figure,
)
from vqtool.inspection.report.inputs import DataPass, ModelSamples
from vqtool.metrics.usage import CodeCounter, usage_from_counts


def test_usage_data_are_sorted_by_hits_in_each_level() -> None:
    figure = usage_figure([usage_from_counts(torch.tensor([3, 0, 7, 3])), usage_from_counts(torch.tensor([1, 2]))])
    assert figure.data.rows == [
        *((0, 1, 2, 7), (0, 2, 0, 3), (0, 3, 3, 3), (0, 4, 1, 0)),
        *((1, 1, 1, 2), (1, 2, 0, 1)),
    ]
    assert [picture.title for picture in figure.pictures] == ["level 0", "level 1"]
    assert "1 dead" in figure.pictures[0].markup
    assert "dead" not in figure.pictures[1].markup
    assert codes_by_hits([5, 5, 9]).tolist() == [2, 0, 1]


def test_usage_data_hold_all_levels_and_the_first_8_are_drawn() -> None:
    figure = usage_figure([usage_from_counts(torch.tensor([1, 1]))] * 12)
    assert len(figure.pictures) == 8
    assert len(figure.data.rows) == 24
    assert "first 8 of 12" in figure.interpretation


def test_principal_components_are_the_directions_of_greatest_variance() -> None:
    random = np.random.default_rng(0)
    vectors = (random.standard_normal((400, 3)) * [1, 5, 0.1] + 7).astype(np.float32)
    components = principal_components(vectors)
    assert np.abs(components.directions).round(1).tolist() == [[0, 1], [1, 0], [0, 0]]
    assert (components.directions[[1, 0], [0, 1]] > 0).all()  # the sign is determined
    assert components.explained_variance_ratio == pytest.approx([25 / 26, 1 / 26], abs=0.01)
    assert components.project(vectors).mean(axis=0) == pytest.approx([0, 0], abs=1e-5)
    assert principal_components(vectors[:, :1]).project(vectors[:, :1])[:, 1].tolist() == [0] * 400


def test_the_map_data_hold_every_code_of_every_level(model_samples: dict[str, ModelSamples]) -> None:
    data_pass = model_samples["ids"].data_pass
    levels = data_pass.counter.levels
    figure = codebook_map_figure(data_pass, levels)
    assert figure
    assert len(figure.pictures) == 2
    assert [(row[0], row[1], row[4]) for row in figure.data.rows] == [
        (level, code, hits) for level, usage in enumerate(levels) for code, hits in enumerate(usage.counts)
    ]
    assert codebook_map_figure(replace(data_pass, codebooks=[]), levels) is None


def test_the_map_of_8192_codes_is_small() -> None:
    random = np.random.default_rng(0)
    counts = np.bincount(random.integers(0, 8_192, 400 * 256), minlength=8_192)
    codes, latents = (random.standard_normal((n, 8)).astype(np.float32) for n in (8_192, 10_000))
    data_pass = DataPass(CodeCounter([8_192], ids=False), [], [codes], [latents], [])
    figure = codebook_map_figure(data_pass, [usage_from_counts(torch.from_numpy(counts))])
    assert figure
    assert len(figure.pictures[0].markup) + len(figure.data.uri) < 1.5e6
