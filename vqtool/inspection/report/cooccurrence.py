"""What neighbouring codes tell of each other: how many bits a prior over tokens could still save."""

import math
from collections.abc import Sequence

import numpy as np

from vqtool.inspection.pairs import Relation
from vqtool.inspection.report.drawing import ACCENT, QUIET, SECOND, SURPRISE, drawing
from vqtool.inspection.report.figure import Figure, Picture, Table
from vqtool.inspection.words import counted
from vqtool.metrics.usage import Usage

# Relations whose pairs are drawn one by one.
_DRAWN = 4
# Pairs a code below which a saving is in doubt.
_FEW = 20


def cooccurrence_figure(relations: Sequence[Relation], levels: Sequence[Usage]) -> Figure | None:
    """Bits a token with and without its neighbour, and which codes go together; None where no code has a neighbour."""
    if not relations:
        return None
    return Figure(
        name="cooccurrence",
        title="Neighbouring codes",
        pictures=[_bars(relations, levels), *(_pairs(n, relation) for n, relation in enumerate(relations[:_DRAWN]))],
        axes="Bars: bits per token. Squares: pairs of the most used codes, horizontal the code, vertical its "
        "neighbour. Blue pairs are more frequent than by chance, red pairs less frequent; the scale is in approximate "
        "standard deviations.",
        meaning=_meaning(relations, levels),
        numbers=Table(
            ["level", "neighbour", "pairs", "entropy", "given neighbour", "given shuffled neighbour", "bits saved"],
            [(r.level, r.neighbour, r.pairs, r.alone, r.given, r.by_chance, r.gain) for r in relations],
        ),
        shown=True,
    )


def _meaning(relations: Sequence[Relation], levels: Sequence[Usage]) -> str:
    best = max(relations, key=lambda relation: relation.gain)
    fewest = min(relation.pairs for relation in relations)
    at = f" at level {best.level}" if len(levels) > 1 else ""
    used = levels[best.level].used
    few = f" {counted(fewest, 'pair')} for {counted(used, 'code')} are too few for a reliable estimate."
    return (
        f"A prior over tokens that conditions on {best.neighbour} can save {best.gain:.2f} of {best.alone:.2f} bits "
        f"per token{at}; a prior with more context can save more. Bits saved: entropy given a shuffled neighbour, "
        "minus entropy given the real one. Subtracting from the shuffled value removes the bias of small counts."
        f"{few if fewest < _FEW * used else ''}"
    )


def _bars(relations: Sequence[Relation], levels: Sequence[Usage]) -> Picture:
    names, values, colours = [], [], []
    several = len(levels) > 1
    for level in sorted({relation.level for relation in relations}):
        prefix = f"level {level}: " if several else ""
        own = [relation for relation in relations if relation.level == level]
        names += [f"{prefix}log2 K", f"{prefix}entropy", *(f"{prefix}given {r.neighbour}" for r in own)]
        alone = levels[level].entropy_bits
        values += [math.log2(levels[level].codebook_size), alone, *(max(0.0, alone - r.gain) for r in own)]
        colours += [QUIET, ACCENT, *[SECOND] * len(own)]
    with drawing("bits", "bits per token", height=0.7 + 0.27 * len(names)) as made:
        places = np.arange(len(names))
        made.ax.barh(places, values, color=colours, height=0.7)
        made.ax.set_yticks(places, names)
        made.ax.invert_yaxis()
        made.ax.set(xlabel="bits per token", xlim=(0, 1.15 * max(values)))
        for place, value in enumerate(values):
            made.ax.text(value, place, f" {value:.2f}", va="center")
    return Picture(made.svg, "bits per token")


def _pairs(number: int, relation: Relation) -> Picture:
    with drawing(f"pairs-{number}", "pairs of codes", height=3.7) as made:
        most = float(np.abs(relation.surprise).max().clip(3, 20))
        shown = made.ax.imshow(
            relation.surprise, cmap=SURPRISE, vmin=-most, vmax=most, origin="lower", interpolation="nearest"
        )
        for axis, codes in ((made.ax.xaxis, relation.codes), (made.ax.yaxis, relation.before)):
            some = np.arange(0, len(codes), max(1, len(codes) // 8))
            axis.set_ticks(some, [str(codes[k]) for k in some])
        made.ax.set(xlabel="code", ylabel=relation.neighbour)
        made.bar(shown, "deviation from chance (standard deviations)")
    title = f"code{f' at level {relation.level}' if relation.level else ''} and {relation.neighbour}"
    return Picture(made.svg, title)
