"""What each code means: the samples that lie nearest to it, and what is decoded in their place.

Shapes: n samples, L positions per sample, Q levels, M places kept a code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.inspection.report.codes_of_pictures import picture_of_patches, picture_of_whole
from vqtool.inspection.report.codes_of_rows import picture_of_vectors, picture_of_waves
from vqtool.inspection.report.figure import Figure, Picture, Table
from vqtool.inspection.report.inputs import Seen
from vqtool.inspection.report.instances import Instances
from vqtool.inspection.report.usage import ranked
from vqtool.inspection.sharing import residual_depth
from vqtool.metrics.usage import Usage

# Codes shown: of the most used, and of the least used that have any hit.
_MOST, _LEAST = 8, 4


@dataclass(frozen=True)
class _Way:
    """How codes of one kind of data are shown."""

    draw: Callable[[Instances], Picture]
    axes: str
    meaning: str


def meanings_figures(seen: Seen, levels: list[Usage]) -> list[Figure]:
    """A figure a level, with a picture for each of some codes; none of levels of which no places were kept."""
    found = [_figure(seen, level, levels) for level in range(len(seen.collected.places))]
    return [figure for figure in found if figure]


def _figure(seen: Seen, level: int, levels: list[Usage]) -> Figure | None:
    codes = shown_codes(levels[level], seen.collected.places[level])
    if not codes:
        return None
    way = _way(seen)
    instances = _instances(seen, level, codes, levels[level])
    which = f" of level {level}" if len(levels) > 1 else ""
    return Figure(
        name=f"examples-{level}" if level else "examples",
        title=f"Example samples for the codes{which}",
        pictures=[way.draw(own) for own in instances],
        axes=way.axes,
        meaning=f"{way.meaning} The most used codes{which} come first, then the least used codes that have hits. For "
        f"each code: the samples whose {_compared(seen, level)} are nearest to it, nearest first. The samples of one "
        "code should look similar.",
        numbers=Table(
            ["code", "hits", "row", "position"],
            [
                (own.code, own.hits, row, place)
                for own in instances
                for row, place in zip(own.numbers, own.positions, strict=True)
            ],
        ),
    )


def _compared(seen: Seen, level: int) -> str:
    """The vectors that the codes of a level are compared with."""
    return "residuals" if level % residual_depth(seen.tokenizer.settings.model.quantizer) else "latents"


def shown_codes(usage: Usage, places: NDArray[np.int64]) -> list[int]:
    """The most used codes, and the least used ones, among those that samples were kept of."""
    used = [int(code) for code in ranked(usage.counts) if code < len(places) and places[code, 0] >= 0]
    return used if len(used) <= _MOST + _LEAST else used[:_MOST] + used[-_LEAST:]


def _way(seen: Seen) -> _Way:
    size, grid = seen.samples.size, seen.grid
    local = len(grid) == len(size) and seen.tokenizer.model.any_size
    if not size:
        return _Way(
            picture_of_vectors,
            "Horizontal: index in the row. Vertical: samples, labelled with their row in the data; below the white "
            "line, their reconstructions. Colour: value, from dark (low) to bright (high).",
            "Each picture is a code.",
        )
    if len(size) == 1:
        return _Way(
            picture_of_waves,
            "Horizontal: time steps, relative to the first step of the token. Vertical: value of the first channel, in "
            "the units of the data. Thin lines: samples. Thick line: the mean of their reconstructions. Shaded: the "
            "steps that the token covers."
            if local
            else "Horizontal: time steps. Vertical: value of the first channel, in the units of the data. Thin lines: "
            "samples. Thick line: the mean of their reconstructions.",
            "Each picture is a code.",
        )
    if local:
        return _Way(
            picture_of_patches,
            "Upper row: patches of input images, with the pixels of the token in the middle and a margin of half a "
            "token; transparent outside the image. Lower row: the same patches of the reconstructions.",
            "Each card is a code.",
        )
    return _Way(
        picture_of_whole,
        "Whole samples are shown, because each code depends on the whole sample. Upper row: inputs. Lower row: their "
        "reconstructions. Left: pixels or tiles of the reconstruction that change if this code is replaced by the most "
        "used other code; more red means in more of these samples.",
        "Each card is a code; the red area shows which part of the sample it controls.",
    )


def _instances(seen: Seen, level: int, codes: list[int], usage: Usage) -> list[Instances]:
    """The samples of each code; all are encoded and decoded at once, for a network takes as long for few."""
    kept = [seen.collected.places[level][code] for code in codes]
    kept = [places[places >= 0] for places in kept]
    places, counts = np.concatenate(kept), [len(own) for own in kept]
    samples, positions = np.divmod(places, int(np.prod(seen.grid)))
    rows = seen.rows(samples.tolist())
    indices = seen.encode(rows)
    order = ranked(usage.counts)
    others = np.repeat([int(order[min(1, len(order) - 1)] if code == order[0] else order[0]) for code in codes], counts)
    swapped = _swapped(indices, level, torch.from_numpy(positions), torch.from_numpy(others))
    parts = [part.split(counts) for part in (rows, seen.decode(indices), seen.decode(swapped))]
    numbers = [seen.row_number(sample) for sample in samples.tolist()]
    ends = np.cumsum(counts)
    return [
        Instances(
            seen=seen,
            level=level,
            code=code,
            hits=usage.counts[code],
            share=usage.counts[code] / max(1, usage.tokens),
            numbers=numbers[end - count : end],
            positions=positions[end - count : end].tolist(),
            rows=own,
            decoded=decoded,
            without=without,
        )
        for code, count, end, own, decoded, without in zip(codes, counts, ends, *parts, strict=True)
    ]


def _swapped(indices: Tensor, level: int, positions: Tensor, others: Tensor) -> Tensor:
    """Indices (n, L), or (n, L, Q), with other codes (n,) at positions (n,), in one level."""
    swapped = indices.clone()
    swapped.view(*indices.shape[:2], -1)[torch.arange(len(indices)), positions, level] = others
    return swapped
