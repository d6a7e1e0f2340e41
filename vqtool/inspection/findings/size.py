"""More codes than the data fill, or fewer than they could."""

from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.findings.advice import smaller

# Training tokens a code, fewer than which cannot place it.
_ENOUGH = 20
# Perplexity over K, from which on a codebook is full.
_FULL = 0.9
# What half the codes would multiply the quantizing error by, from which on more of them would lower it.
_FALLING = 1.25
# The part of the latents' variance that is lost, below which there is nothing more to gain.
_LITTLE = 0.02


def codebook_too_large(evidence: Evidence) -> Iterator[Finding]:
    """More codes than there are data to place them."""
    if evidence.tokens is None:
        return
    for number, usage in enumerate(evidence.levels):
        if evidence.metric(number, "spread") is None:  # its codes are given, and need no data
            continue
        each = evidence.tokens / usage.codebook_size
        if each < _ENOUGH:
            yield Finding(
                "codebook_too_large",
                "warning",
                f"{usage.codebook_size:,} codes{evidence.where(number)} have {each:,.1f} training tokens each",
                {"level": number, "tokens_per_code": each, "codebook_size": usage.codebook_size},
                "codes with so few tokens fit these alone: others of their kind fall elsewhere",
                tuple(smaller(evidence, evidence.tokens // _ENOUGH)),
            )


def codebook_at_ceiling(evidence: Evidence) -> Iterator[Finding]:
    """All codes are in even use, and more would still bring reconstruction forward."""
    for number, usage in enumerate(evidence.levels):
        halving, error = evidence.metric(number, "halving"), evidence.metric(number, "error")
        full = usage.perplexity > _FULL * usage.codebook_size
        if full and halving is not None and error is not None and halving > _FALLING and error > _LITTLE:
            double = str(2 * usage.codebook_size)
            yield Finding(
                "codebook_at_ceiling",
                "note",
                f"the codebook{evidence.where(number)} is full (perplexity {usage.perplexity:,.1f} of "
                f"{usage.codebook_size:,}), and still loses {error:.0%} of the latents' variance",
                {"level": number, "perplexity": usage.perplexity, "error": error, "halving": halving},
                f"more codes would still pay: with half of them the error would be {halving:.2g} times as large",
                (Change(evidence.key("codebook_size"), double, "one more bit a token"),),
            )
