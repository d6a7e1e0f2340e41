"""What the pictures show, and the numbers behind them."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from vqtool.inspection.pairs import Pairs
from vqtool.inspection.report import meanings
from vqtool.inspection.report.codebook_map import map_figure, principal_plane
from vqtool.inspection.report.cooccurrence import cooccurrence_figure
from vqtool.inspection.report.curves import curves_figure, series
from vqtool.inspection.report.index_maps import code_colours, index_maps_figure
from vqtool.inspection.report.inputs import ReportInputs, Seen
from vqtool.inspection.report.meanings import meanings_figures, shown_codes
from vqtool.inspection.report.pixels import Painter, mosaic, patch
from vqtool.inspection.report.usage import ranked, usage_figure
from vqtool.metrics.usage import usage_from_counts


def levels(seen: Seen) -> list:  # type: ignore[type-arg]
    return seen.collected.tally.levels


def test_usage_is_ranked_level_by_level() -> None:
    figure = usage_figure([usage_from_counts(torch.tensor([3, 0, 7, 3])), usage_from_counts(torch.tensor([1, 2]))])
    assert figure.numbers.rows == [
        *((0, 1, 2, 7), (0, 2, 0, 3), (0, 3, 3, 3), (0, 4, 1, 0)),
        *((1, 1, 1, 2), (1, 2, 0, 1)),
    ]
    assert [picture.title for picture in figure.pictures] == ["level 0", "level 1"]
    assert "1 dead" in figure.pictures[0].markup
    assert "dead" not in figure.pictures[1].markup
    assert ranked([5, 5, 9]).tolist() == [2, 0, 1]


def test_many_levels_are_counted_though_not_all_are_drawn() -> None:
    figure = usage_figure([usage_from_counts(torch.tensor([1, 1]))] * 12)
    assert len(figure.pictures) == 8
    assert len(figure.numbers.rows) == 24
    assert "first 8 of 12" in figure.meaning


def test_curves_hold_all_that_was_logged() -> None:
    metrics = [{"step": 5, "loss/reconstruction": 2.0}, {"step": 10, "codebook/usage": 0.5, "codebook/entropy": 0.7}]
    figure = curves_figure(metrics, 16)
    assert figure
    assert figure.numbers.columns == ["step", "codebook/entropy", "codebook/usage", "loss/reconstruction"]
    assert figure.numbers.rows == [[5, None, None, 2.0], [10, 0.7, 0.5, None]]
    assert series(metrics, "codebook/usage") == ([10], [0.5])
    assert "not logged" in figure.pictures[0].markup
    assert curves_figure([{"step": 3}], 16) is None


def test_the_plane_is_that_of_greatest_variance() -> None:
    random = np.random.default_rng(0)
    vectors = (random.standard_normal((400, 3)) * [1, 5, 0.1] + 7).astype(np.float32)
    plane = principal_plane(vectors)
    assert np.abs(plane.axes).round(1).tolist() == [[0, 1], [1, 0], [0, 0]]
    assert (plane.axes[[1, 0], [0, 1]] > 0).all()  # the sign does not depend on chance
    assert plane.shares == pytest.approx([25 / 26, 1 / 26], abs=0.01)
    assert plane.project(vectors).mean(axis=0) == pytest.approx([0, 0], abs=1e-5)
    assert principal_plane(vectors[:, :1]).project(vectors[:, :1])[:, 1].tolist() == [0] * 400


def test_the_map_has_every_code_of_every_level(seen: dict[str, Seen]) -> None:
    own = seen["ids"]
    figure = map_figure(own.collected, levels(own))
    assert figure
    assert len(figure.pictures) == 2
    assert [(row[0], row[1], row[4]) for row in figure.numbers.rows] == [
        (level, code, hits) for level, usage in enumerate(levels(own)) for code, hits in enumerate(usage.counts)
    ]
    assert map_figure(replace(own.collected, codes=[]), levels(own)) is None


@pytest.mark.parametrize("kind", ["images", "tiles", "sequences", "vectors", "ids"])
def test_each_code_is_shown_by_samples_that_have_it(
    kind: str, seen: dict[str, Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = seen[kind]
    monkeypatch.setattr(meanings, "_MOST", 2)
    monkeypatch.setattr(meanings, "_LEAST", 1)
    figures = meanings_figures(own, levels(own))
    assert [figure.name for figure in figures] == ["examples", "examples-1"][: len(levels(own))]
    numbers = {own.row_number(sample): sample for sample in range(len(own.samples))}
    for level, figure in enumerate(figures):
        for code, hits, row, position in figure.numbers.rows:
            indices = own.encode(own.rows([numbers[row]])).reshape(1, int(np.prod(own.grid)), -1)
            assert int(indices[0, position, level]) == code
            assert levels(own)[level].counts[code] == hits
        titles = [picture.title for picture in figure.pictures]
        assert [int(re.findall(r"\d+", title)[0]) for title in titles] == list(
            dict.fromkeys(row[0] for row in figure.numbers.rows)
        )
        assert ("residuals" in figure.meaning) == (level > 0)


def test_a_code_is_taken_away_in_its_own_level() -> None:
    indices, ones = torch.arange(12).reshape(2, 3, 2), torch.tensor([2, 0])
    swapped = meanings._swapped(indices, 1, ones, torch.tensor([70, 80]))
    assert swapped.tolist() == [[[0, 1], [2, 3], [4, 70]], [[6, 80], [8, 9], [10, 11]]]
    alone = meanings._swapped(indices[..., 0], 0, ones, torch.tensor([70, 80]))
    assert alone.tolist() == [[0, 2, 70], [80, 8, 10]]


def test_the_most_and_the_least_used_codes_are_shown() -> None:
    usage = usage_from_counts(torch.tensor([*range(20, 0, -1), 0, 0]))
    places = np.where(np.array(usage.counts) > 0, 3, -1)[:, None]
    assert shown_codes(usage, places) == [*range(8), *range(16, 20)]
    assert shown_codes(usage_from_counts(torch.tensor([0, 2, 5])), np.array([[-1], [1], [1]])) == [2, 1]


@pytest.mark.parametrize("kind", ["images", "tiles", "sequences", "levels of images", "levels of sequences"])
def test_samples_stand_beside_their_codes(kind: str, seen: dict[str, Seen]) -> None:
    own = seen[kind]
    figure = index_maps_figure(own)
    assert figure
    assert len(figure.pictures) == 6
    assert [row[3] for row in figure.numbers.rows] == own.indices.flatten().tolist()
    assert index_maps_figure(seen["vectors"]) is None
    drawn = min(4, own.indices.shape[2])
    assert all(
        picture.markup.count("<image") == drawn + 2 * ("images" in kind or kind == "tiles")
        for picture in figure.pictures
    )
    assert (f"first 4 of {own.indices.shape[2]} levels" in figure.axes) == (own.indices.shape[2] > 4)


def test_codes_that_lie_near_each_other_have_like_colours(seen: dict[str, Seen]) -> None:
    own = seen["images"]
    latents = np.stack([np.linspace(0, 1, 50), np.zeros(50)], axis=1).astype(np.float32)
    codes = np.array([[0, 0], [0.1, 0], [1, 0]], np.float32)
    changed = replace(own, collected=replace(own.collected, codes=[codes], latents=[latents]))
    first, second, third = code_colours(changed)
    assert np.abs(first - second).max() < 0.2 < 0.7 < np.abs(first - third).max()


def test_neighbours_tell_their_bits(materials: dict[str, ReportInputs]) -> None:
    found = materials["images"]
    figure = cooccurrence_figure(found.relations, found.inspection.levels)
    assert figure
    assert [row[:3] for row in figure.numbers.rows] == [
        (relation.level, relation.neighbour, relation.pairs) for relation in found.relations
    ]
    assert "too few" in figure.meaning
    pairs = Pairs([2], (64,), 50)
    pairs.add(0, (np.arange(64)[None] + np.random.default_rng(0).integers(0, 2, (50, 1))) % 2)
    sure = cooccurrence_figure(pairs.result(), [usage_from_counts(torch.tensor([1600, 1600]))])
    assert sure
    assert "the previous code can save 1.00 of 1.00 bits" in sure.meaning
    assert "too few" not in sure.meaning
    assert cooccurrence_figure([], found.inspection.levels) is None


# Pixels


def test_a_patch_has_its_cell_in_the_middle_and_is_clear_outside() -> None:
    picture = np.ones((8, 8, 4)) * np.arange(64).reshape(8, 8, 1) / 64
    inner = patch(picture, (4, 4), 5)  # cell (1, 1), pixels 2 to 4
    assert np.array_equal(inner, picture[1:5, 1:5])
    corner = patch(picture, (4, 4), 0)
    assert np.array_equal(corner[1:, 1:], picture[:3, :3])
    assert not corner[0].any()
    assert patch(np.ones((7, 9, 4)), (2, 3), 5).shape == (8, 5, 4)


def test_colours_are_on_one_scale(seen: dict[str, Seen]) -> None:
    own = seen["images"]
    painted = Painter(own.tokenizer.spec, own.shown).paint(own.shown)
    assert painted.shape == (6, 8, 8, 4)
    assert (painted[..., :3].min(), painted[..., :3].max()) == (0, 1)
    low, high = float(own.shown.min()), float(own.shown.max())
    assert painted[2, 3, 4, 1] == pytest.approx((float(own.shown[2, 1, 3, 4]) - low) / (high - low))
    tiles = seen["tiles"]
    colours = Painter(tiles.tokenizer.spec, tiles.shown).paint(tiles.shown)
    assert len(np.unique(colours.reshape(-1, 4), axis=0)) == 5


def test_a_mosaic_keeps_pictures_apart() -> None:
    one = np.ones((2, 3, 4))
    whole = mosaic([[one, one], [one]])
    assert whole.shape == (5, 7, 4)
    assert whole.sum() == 3 * one.sum()
