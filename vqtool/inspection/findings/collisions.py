"""Items that share an id."""

import math
from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings.advice import one_more_level
from vqtool.metrics.usage import expected_used

# Collisions that nobody minds, and by how many times chance must be exceeded.
_FEW, _BEYOND = 0.1, 3.0
_MANY_BITS = 100


def collisions(evidence: Evidence) -> Iterator[Finding]:
    """More rows share an id than chance would have it (the birthday bound), over ids of several levels."""
    if evidence.distinct is None or len(evidence.levels) < 2 or not evidence.distinct.rows:
        return
    rows, rate = evidence.distinct.rows, evidence.distinct.collision_rate
    positions = evidence.levels[0].tokens // rows
    bits = positions * sum(math.log2(usage.codebook_size) for usage in evidence.levels)
    # Beyond so many ids no two rows share one by chance, and their number is none that a float holds.
    chance = 1 - expected_used(round(2**bits), rows) / rows if bits < _MANY_BITS else 0.0
    if rate > _FEW and rate > _BEYOND * chance:
        yield Finding(
            "collisions",
            "warning",
            f"the collision rate is {rate:.1%} over {rows:,} rows; uniformly random ids would have {chance:.1%}",
            {"collision_rate": rate, "by_chance": chance, "rows": rows},
            "many rows are nearly identical, or usage is uneven; vqtool encode --unique makes each id unique",
            one_more_level(evidence, "one more code per id distinguishes more rows"),
        )
