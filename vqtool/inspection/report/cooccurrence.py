"""What neighbouring codes tell of each other: how many bits a prior over tokens could still save."""

import math
from collections.abc import Sequence

import numpy as np

from vqtool.inspection.pairs import Relation
from vqtool.inspection.report.drawing import ACCENT, QUIET, SECOND, SURPRISE, drawing
from vqtool.inspection.report.figure import Figure, Picture, Table
from vqtool.inspection.words import counted
from vqtool.usage import Usage

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
        title="What neighbours tell",
        pictures=[_bars(relations, levels), *(_pairs(n, relation) for n, relation in enumerate(relations[:_DRAWN]))],
        axes="Bars: bits a token takes. Squares: the most used codes, by number; across a code, up the neighbour; "
        "blue pairs are seen more often than by chance, red ones less, clear ones as often, in about standard "
        "deviations.",
        meaning=_meaning(relations, levels),
        numbers=Table(
            ["level", "neighbour", "pairs", "bits alone", "bits given neighbour", "the same by chance", "bits saved"],
            [(r.level, r.neighbour, r.pairs, r.alone, r.given, r.by_chance, r.gain) for r in relations],
        ),
        shown=True,
    )


def _meaning(relations: Sequence[Relation], levels: Sequence[Usage]) -> str:
    best = max(relations, key=lambda relation: relation.gain)
    fewest = min(relation.pairs for relation in relations)
    at = f" at level {best.level}" if len(levels) > 1 else ""
    used = levels[best.level].used
    few = f" Here: {counted(fewest, 'pair')} for {counted(used, 'code')}, too few to be sure."
    return (
        f"A prior that looks at {best.neighbour} could save {best.gain:.2f} of {best.alone:.2f} bits{at}, and one that "
        "sees more could save more. A saving counts beyond what neighbours drawn by chance seem to tell: with few "
        f"pairs, that is much.{few if fewest < _FEW * used else ''}"
    )


def _bars(relations: Sequence[Relation], levels: Sequence[Usage]) -> Picture:
    names, values, colours = [], [], []
    several = len(levels) > 1
    for level in sorted({relation.level for relation in relations}):
        prefix = f"level {level}: " if several else ""
        own = [relation for relation in relations if relation.level == level]
        names += [f"{prefix}log2 K", f"{prefix}alone", *(f"{prefix}given {r.neighbour}" for r in own)]
        alone = levels[level].entropy_bits
        values += [math.log2(levels[level].codebook_size), alone, *(max(0.0, alone - r.gain) for r in own)]
        colours += [QUIET, ACCENT, *[SECOND] * len(own)]
    with drawing("bits", "bits a token takes", height=0.7 + 0.27 * len(names)) as made:
        places = np.arange(len(names))
        made.ax.barh(places, values, color=colours, height=0.7)
        made.ax.set_yticks(places, names)
        made.ax.invert_yaxis()
        made.ax.set(xlabel="bits a token", xlim=(0, 1.15 * max(values)))
        for place, value in enumerate(values):
            made.ax.text(value, place, f" {value:.2f}", va="center")
    return Picture(made.svg, "bits a token")


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
        made.bar(shown, "more often than by chance")
    title = f"level {relation.level} and {relation.neighbour}" if relation.level else f"a code and {relation.neighbour}"
    return Picture(made.svg, title)
