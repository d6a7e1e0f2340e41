"""The figures of example samples for each code."""

import re

import numpy as np
import pytest
import torch

from vqtool.inspection.report.code_examples import code_examples_figures, mosaic, patch, replace_codes, select_codes
from vqtool.inspection.report.inputs import ModelSamples
from vqtool.metrics.usage import usage_from_counts


@pytest.mark.parametrize("kind", ["images", "tiles", "sequences", "vectors", "ids"])
def test_examples_of_a_code_have_that_code(kind: str, model_samples: dict[str, ModelSamples]) -> None:
    samples = model_samples[kind]
    levels = samples.data_pass.counter.levels
    figures = code_examples_figures(samples, levels, most_used=2, least_used=1)
    assert [figure.name for figure in figures] == ["examples", "examples-1"][: len(levels)]
    sample_of_row = {samples.row_index(sample): sample for sample in range(len(samples.samples))}
    for level, figure in enumerate(figures):
        for code, hits, row, position in figure.data.rows:
            indices = samples.encode(samples.take_rows([sample_of_row[row]]))
            assert int(indices.reshape(1, int(np.prod(samples.grid)), -1)[0, position, level]) == code
            assert levels[level].counts[code] == hits
        titles = [picture.title for picture in figure.pictures]
        assert [int(re.findall(r"\d+", title)[0]) for title in titles] == list(
            dict.fromkeys(row[0] for row in figure.data.rows)
        )
        assert ("residuals" in figure.interpretation) == (level > 0)


def test_codes_are_replaced_in_one_level_and_position_only() -> None:
    indices, positions = torch.arange(12).reshape(2, 3, 2), torch.tensor([2, 0])
    replaced = replace_codes(indices, 1, positions, torch.tensor([70, 80]))
    assert replaced.tolist() == [[[0, 1], [2, 3], [4, 70]], [[6, 80], [8, 9], [10, 11]]]
    single_level = replace_codes(indices[..., 0], 0, positions, torch.tensor([70, 80]))
    assert single_level.tolist() == [[0, 2, 70], [80, 8, 10]]


def test_the_8_most_and_4_least_used_codes_with_hits_are_selected() -> None:
    usage = usage_from_counts(torch.tensor([*range(20, 0, -1), 0, 0]))
    nearest_tokens = np.where(np.array(usage.counts) > 0, 3, -1)[:, None]
    assert select_codes(usage, nearest_tokens) == [*range(8), *range(16, 20)]
    assert select_codes(usage_from_counts(torch.tensor([0, 2, 5])), np.array([[-1], [1], [1]])) == [2, 1]


def test_a_patch_has_the_token_in_the_middle_and_is_transparent_outside_the_image() -> None:
    pixels = np.ones((8, 8, 4)) * np.arange(64).reshape(8, 8, 1) / 64
    inner = patch(pixels, (4, 4), 5)  # cell (1, 1), pixels 2 and 3 in both directions
    assert np.array_equal(inner, pixels[1:5, 1:5])
    corner = patch(pixels, (4, 4), 0)
    assert np.array_equal(corner[1:, 1:], pixels[:3, :3])
    assert not corner[0].any()
    assert patch(np.ones((7, 9, 4)), (2, 3), 5).shape == (8, 5, 4)


def test_a_mosaic_has_gaps_between_images() -> None:
    image = np.ones((2, 3, 4))
    canvas = mosaic([[image, image], [image]])
    assert canvas.shape == (5, 7, 4)
    assert canvas.sum() == 3 * image.sum()
    assert mosaic([[image]], min_columns=2).shape == (2, 7, 4)
