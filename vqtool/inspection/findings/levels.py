"""Levels of a residual quantizer that add little."""

from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding

# The part of what is left over that a level may leave over.
_WEAK = 0.95


def weak_level(evidence: Evidence) -> Iterator[Finding]:
    """A level that leaves almost all of what it was given."""
    if evidence.settings is None or evidence.settings.model.quantizer.kind != "residual":
        return
    for number in range(1, len(evidence.levels)):
        left = evidence.metric(number, "error")
        if left is not None and left > _WEAK:
            yield Finding(
                "weak_level",
                "warning",
                f"level {number} leaves {left:.0%} of what the levels before it left over",
                {"level": number, "error": left},
                "what is left over is noise to it, or its codes do not lie where the remainders are",
                (Change("model.quantizer.levels", str(number), "without this level next to nothing is lost"),),
            )
