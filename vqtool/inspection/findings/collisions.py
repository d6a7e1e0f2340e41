"""Findings about rows with the same id, one code per level."""

import math
from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings.advice import add_residual_level
from vqtool.metrics.usage import expected_used

# Collision rates up to this are acceptable.
_MAX_COLLISION_RATE = 0.1
# Rates up to this multiple of the rate of random ids are explained by chance.
_MAX_RATIO_TO_RANDOM_IDS = 3.0
# With longer ids random collisions are negligible, and 2^bits would exceed the range of a float from 1024 bits on.
_MAX_ID_BITS = 100


def collisions(evidence: Evidence) -> Iterator[Finding]:
    """Report a collision rate above 10% and above 3 times that of random ids, for ids of several levels.

    Of n rows with random ids of b bits, the fraction 1 - m (1 - (1 - 1/m)^n) / n collides, where m = 2^b (the birthday
    problem).
    """
    if evidence.distinct is None or len(evidence.levels) < 2 or not evidence.distinct.rows:
        return
    rows, rate = evidence.distinct.rows, evidence.distinct.collision_rate
    tokens_per_row = evidence.levels[0].tokens // rows
    bits = tokens_per_row * sum(math.log2(usage.codebook_size) for usage in evidence.levels)
    random_rate = 1 - expected_used(round(2**bits), rows) / rows if bits < _MAX_ID_BITS else 0.0
    if rate > _MAX_COLLISION_RATE and rate > _MAX_RATIO_TO_RANDOM_IDS * random_rate:
        yield Finding(
            "collisions",
            "warning",
            f"the collision rate is {rate:.1%} over {rows:,} rows; uniformly random ids would have {random_rate:.1%}",
            {"collision_rate": rate, "by_chance": random_rate, "rows": rows},
            "many rows are nearly identical, or usage is uneven; vqtool encode --unique makes each id unique",
            tuple(add_residual_level(evidence, "one more code per id distinguishes more rows")),
        )
