"""The table of levels, for the terminal and the HTML report."""

from collections.abc import Sequence

from vqtool.metrics.usage import Usage

LEVEL_HEADER = ("level", "K", "used", "usage", "expected", "dead", "perplexity", "bits")
# Explains LEVEL_HEADER.
LEVEL_MEANING = (
    "K: codebook size. Used: codes with at least one hit; usage: used / K. Expected: used codes for uniform usage with "
    "this number of tokens. Dead: codes without hits. Perplexity: effective number of codes, exp(entropy). Bits: "
    "entropy per token, at most log2 K."
)


def level_rows(levels: Sequence[Usage]) -> list[tuple[str, ...]]:
    """One row per level, below LEVEL_HEADER."""
    return [
        (
            str(number),
            f"{level.codebook_size:,}",
            f"{level.used:,}",
            f"{level.usage:.1%}",
            f"{level.expected_used:,.1f}",
            f"{level.dead:,}",
            f"{level.perplexity:,.1f}",
            f"{level.entropy_bits:.3f}",
        )
        for number, level in enumerate(levels)
    ]
