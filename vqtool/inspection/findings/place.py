"""Codes that lie where they are of no use, or no longer move."""

from collections.abc import Iterator

from vqtool.config import learning_rate
from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.findings.advice import reviving, smaller

# Parts of a codebook.
_DUPLICATES, _OUTSIDE = 0.02, 0.01
# Root mean square of the codes over that of the latents.
_TOO_SMALL, _TOO_LARGE = 1 / 3, 3.0
# Of movement between validations, over the quantizing error.
_STILL = 1e-4
# The part of its full value below which a learning rate moves nothing any more.
_COLD = 0.1


def duplicate_codes(evidence: Evidence) -> Iterator[Finding]:
    """Codes that are nearer to each other than latents are to codes."""
    for number, usage in enumerate(evidence.levels):
        duplicates = evidence.metric(number, "duplicates")
        if duplicates is not None and duplicates >= 2 and duplicates > _DUPLICATES * usage.codebook_size:
            yield Finding(
                "duplicate_codes",
                "warning",
                f"{duplicates:,.0f} of {usage.codebook_size:,} codes{evidence.where(number)} nearly equal another",
                {"level": number, "duplicates": duplicates, "codebook_size": usage.codebook_size},
                "there are more codes than different latents, or codes were set down upon each other",
                tuple(smaller(evidence, usage.codebook_size - int(duplicates))),
            )


def codes_outside(evidence: Evidence) -> Iterator[Finding]:
    """Codes outside the cloud of latents."""
    for number, usage in enumerate(evidence.levels):
        outside = evidence.metric(number, "outside")
        if outside and outside > _OUTSIDE * usage.codebook_size:
            yield Finding(
                "codes_outside",
                "warning",
                f"{outside:,.0f} of {usage.codebook_size:,} codes{evidence.where(number)} lie far from all latents",
                {"level": number, "outside": outside, "codebook_size": usage.codebook_size},
                "they started there, or were left behind when the latents moved or shrank",
                tuple(reviving(evidence)),
            )


def scale_mismatch(evidence: Evidence) -> Iterator[Finding]:
    """Codes on another scale than the latents."""
    for number, _ in enumerate(evidence.levels):
        spread = evidence.metric(number, "spread")
        if spread is not None and not _TOO_SMALL <= spread <= _TOO_LARGE:
            yield Finding(
                "scale_mismatch",
                "severe",
                f"the codes{evidence.where(number)} spread {spread:.3g} times as far as the latents",
                {"level": number, "spread": spread},
                "codes that start on another scale than the latents win next to nothing before they have moved there",
                tuple(reviving(evidence)),
            )


def codebook_stands_still(evidence: Evidence) -> Iterator[Finding]:
    """A codebook that stopped moving while the learning rate is still high."""
    if evidence.settings is None or len(evidence.history) < 3:
        return
    training, step = evidence.settings.training, evidence.history[-1]["step"]
    if learning_rate(training, int(step)) < _COLD * training.learning_rate:
        return
    for number, _ in enumerate(evidence.levels):
        moves = [evidence.metric(number, "movement", metrics) for metrics in evidence.history[-2:]]
        if all(move is not None and move < _STILL for move in moves):
            yield Finding(
                "codebook_stands_still",
                "severe",
                f"the codes{evidence.where(number)} have not moved over the last two validations",
                {"level": number, "movement": moves[-1], "step": step},
                "nothing moves them: the loss that they learn from weighs next to nothing, or its gradient vanishes",
                (
                    Change(evidence.key("learning.kind"), "ema", "codes move with the latents, whatever losses weigh"),
                    *reviving(evidence),
                ),
            )
