"""Findings about the levels of a residual quantizer."""

from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding

# Quantization error, over the variance of the residual that a level quantizes, above which the level is weak.
_MAX_ERROR = 0.95


def weak_level(evidence: Evidence) -> Iterator[Finding]:
    """Report levels after the first of a residual quantizer that leave over 95% of the variance of their residual."""
    for level in range(len(evidence.levels)):
        error = evidence.metric(level, "error")
        if level % evidence.residual_depth and error is not None and error > _MAX_ERROR:
            yield Finding(
                "weak_level",
                "warning",
                f"level {level} leaves {error:.0%} of the variance of the residual that it quantizes",
                {"level": level, "error": error},
                "the residual is noise at this level, or the codes are far from the residuals",
                tuple(_remove_levels(evidence, level % evidence.residual_depth)),
            )


def _remove_levels(evidence: Evidence, depth: int) -> Iterator[Change]:
    """Yield `levels: DEPTH` if all levels from this depth on are weak, in every group of a product quantizer."""
    deeper = [level for level in range(len(evidence.levels)) if level % evidence.residual_depth >= depth]
    if evidence.residual_levels and all((evidence.metric(level, "error") or 0) > _MAX_ERROR for level in deeper):
        key, _ = evidence.residual_levels
        yield Change(key, str(depth), "removes the levels that reduce the error by less than 5%")
