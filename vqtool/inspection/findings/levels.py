"""Levels of a residual quantizer that add little."""

from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding

# The part of what is left over that a level may leave over.
_WEAK = 0.95


def weak_level(evidence: Evidence) -> Iterator[Finding]:
    """A level that leaves almost all of what it was given."""
    for number in range(len(evidence.levels)):
        left = evidence.metric(number, "error")
        if number % evidence.depth and left is not None and left > _WEAK:
            yield Finding(
                "weak_level",
                "warning",
                f"level {number} leaves {left:.0%} of the variance of the residual that it quantizes",
                {"level": number, "error": left},
                "the residual is noise at this level, or the codes are far from the residuals",
                tuple(_without(evidence, number % evidence.depth)),
            )


def _without(evidence: Evidence, place: int) -> Iterator[Change]:
    """No more levels than come before this place; if all from there on are weak, in each of several groups."""
    behind = [number for number in range(len(evidence.levels)) if number % evidence.depth >= place]
    if evidence.more_levels and all((evidence.metric(number, "error") or 0) > _WEAK for number in behind):
        key, _ = evidence.more_levels
        yield Change(key, str(place), "removes the levels that reduce the error by less than 5%")
