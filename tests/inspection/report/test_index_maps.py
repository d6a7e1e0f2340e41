"""The figure of samples beside their codes, and the rendering of samples as pixels."""

from dataclasses import replace

import numpy as np
import pytest

from vqtool.inspection.report.index_maps import SampleRenderer, code_colours, index_maps_figure
from vqtool.inspection.report.inputs import ModelSamples


@pytest.mark.parametrize("kind", ["images", "tiles", "sequences", "levels of images", "levels of sequences"])
def test_index_maps_show_the_codes_of_the_preview_samples(kind: str, model_samples: dict[str, ModelSamples]) -> None:
    samples = model_samples[kind]
    figure = index_maps_figure(samples)
    assert figure
    assert len(figure.pictures) == 6
    assert [row[3] for row in figure.data.rows] == samples.preview_indices.flatten().tolist()
    levels = samples.preview_indices.shape[2]
    images = min(4, levels) + 2 * ("images" in kind or kind == "tiles")  # codes; input and reconstruction
    assert all(picture.markup.count("<image") == images for picture in figure.pictures)
    assert (f"first 4 of {levels} levels" in figure.axes) == (levels > 4)


def test_vectors_have_no_index_maps(model_samples: dict[str, ModelSamples]) -> None:
    assert index_maps_figure(model_samples["vectors"]) is None


def test_codes_near_each_other_have_similar_colours(model_samples: dict[str, ModelSamples]) -> None:
    samples = model_samples["images"]
    latents = np.stack([np.linspace(0, 1, 50), np.zeros(50)], axis=1).astype(np.float32)
    codes = np.array([[0, 0], [0.1, 0], [1, 0]], np.float32)
    data_pass = replace(samples.data_pass, codebooks=[codes], latents=[latents])
    first, second, third = code_colours(replace(samples, data_pass=data_pass))
    assert np.abs(first - second).max() < 0.2 < 0.7 < np.abs(first - third).max()


def test_pixels_are_on_one_scale_and_classes_have_different_colours(model_samples: dict[str, ModelSamples]) -> None:
    images = model_samples["images"]
    pixels = SampleRenderer(images.tokenizer.spec, images.preview_rows).render(images.preview_rows)
    assert pixels.shape == (6, 8, 8, 4)
    assert (pixels[..., :3].min(), pixels[..., :3].max()) == (0, 1)
    low, high = float(images.preview_rows.min()), float(images.preview_rows.max())
    assert pixels[2, 3, 4, 1] == pytest.approx((float(images.preview_rows[2, 1, 3, 4]) - low) / (high - low))
    tiles = model_samples["tiles"]
    colours = SampleRenderer(tiles.tokenizer.spec, tiles.preview_rows).render(tiles.preview_rows)
    assert len(np.unique(colours.reshape(-1, 4), axis=0)) == 5
