"""Codes that lie where they are of no use, or no longer move."""

import math
from collections.abc import Iterator

from vqtool.config import RunSettings, learning_rate
from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.findings.advice import reviving, smaller

# Parts of a codebook.
_DUPLICATES, _OUTSIDE = 0.02, 0.01
# Root mean square of the chosen codes over that of the latents: against what a code of as many bits should have, and as
# it is. The means of latents spread less far than these, and few codes in many dimensions far less.
_TOO_SMALL, _TOO_LARGE = 1 / 3, 2.0
# Of movement between validations, over the quantizing error.
_STILL = 1e-3
# The part of its full value below which a learning rate moves nothing any more.
_COLD = 0.1


def duplicate_codes(evidence: Evidence) -> Iterator[Finding]:
    """Codes that are nearer to each other than latents are to codes."""
    for number, usage in enumerate(evidence.codebooks):
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
    for number, usage in enumerate(evidence.codebooks):
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
        if spread is not None and not _TOO_SMALL * _least_spread(evidence, number) <= spread <= _TOO_LARGE:
            yield Finding(
                "scale_mismatch",
                "severe",
                f"the codes{evidence.where(number)} spread {spread:.3g} times as far as the latents",
                {"level": number, "spread": spread},
                "codes that start on another scale than the latents win next to nothing before they have moved there",
                tuple(reviving(evidence)),
            )


def codebook_stands_still(evidence: Evidence) -> Iterator[Finding]:
    """A codebook that did not move while the learning rate was high."""
    if evidence.settings is None or _rests(evidence.settings, evidence):
        return
    training = evidence.settings.training
    warm = [
        metrics
        for metrics in evidence.history
        if learning_rate(training, int(metrics["step"])) >= _COLD * training.learning_rate
    ]
    for number, _ in enumerate(evidence.levels):
        moves = [evidence.metric(number, "movement", metrics) for metrics in warm[-2:]]
        if len(moves) == 2 and all(move is not None and move < _STILL for move in moves):
            yield Finding(
                "codebook_stands_still",
                "severe",
                f"the codes{evidence.where(number)} did not move between validations, up to step {warm[-1]['step']:,}",
                {"level": number, "movement": moves[-1], "step": warm[-1]["step"]},
                "nothing moves them: the loss that they learn from weighs next to nothing, or its gradient vanishes",
                (*_moving(evidence), *reviving(evidence)),
            )


def _rests(settings: RunSettings, evidence: Evidence) -> bool:
    """Whether codes may rest by right: averages of latents that no network moves arrive where they belong."""
    averages = getattr(evidence.setting("learning"), "kind", None) == "ema"
    return averages and settings.model.encoder.kind == "identity"


def _least_spread(evidence: Evidence, level: int) -> float:
    """Of the best code of as many bits for a Gaussian, over that of its latents (Cover & Thomas 2006, 10.3.2)."""
    dim, size = evidence.setting("codebook_dim"), evidence.levels[level].codebook_size
    return float(-math.expm1(-2 * math.log(size) / dim)) ** 0.5 if isinstance(dim, int) else 0.0


def _moving(evidence: Evidence) -> Iterator[Change]:
    learning = evidence.setting("learning")
    if getattr(learning, "kind", None) != "ema":
        yield Change(evidence.key("learning.kind"), "ema", "codes move with the latents, whatever losses weigh")
        return
    for name, usual in (("decay", 0.9), ("memory", 15.0)):
        if getattr(learning, name) > usual:
            yield Change(evidence.key(f"learning.{name}"), f"{usual:g}", "a shorter memory, so that codes follow")
