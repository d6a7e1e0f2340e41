"""Trends over the validations of a run."""

from bisect import bisect_right
from collections.abc import Iterator

from vqtool.config import RunSettings, cumulative_lr
from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.findings.advice import reviving, slower

# Validations without which there is no trend.
_LEAST = 4
# By what commitment must have grown since it was least: where codes fall behind, that is, the part of the latents'
# variance that is lost has grown by this much too; and where they do not. Latents spread somewhat in any run, and codes
# follow.
_GREW, _BEHIND, _GREW_MUCH = 3.0, 1.5, 5.0
# How many times that, where growth may be that with which runs begin: in healthy ones up to about tenfold, and sixfold.
_AT_FIRST = 5.0
# And the part of its largest value at which it must still be.
_STAYED = 0.5
# What it must have grown by in the second half of the way that weights can have moved, so that growth has no end in
# sight: that of latents that spread like the square root of this way. In healthy runs it levels off.
_GROWS_ON = 2.0
# Tokens of a validation without which commitment is that of a few: of as many, no single one can make it grow so much.
_TOKENS = 100
# By what part of the codebook usage must have fallen.
_FELL = 0.1


def latents_diverging(evidence: Evidence) -> Iterator[Finding]:
    """Commitment grows without end: the encoder spreads its latents, faster than codes follow."""
    tag, validations = "validation/loss/commitment", [*evidence.history, *evidence.later]
    known = [metrics for metrics in validations if tag in metrics]
    commitments = [metrics[tag] for metrics in known]
    if len(commitments) < _LEAST or evidence.levels[0].tokens < _TOKENS:
        return
    least, last = min(commitments[:-1]), commitments[-1]
    steps = [metrics["step"] for metrics in known]
    halfway = _halfway(evidence.settings, steps)
    much = _GREW if _falls_behind(evidence) else _GREW_MUCH
    if steps[halfway] < evidence.begun:
        much *= _AT_FIRST
    if last > much * least > 0 and last > max(_STAYED * max(commitments), _GROWS_ON * commitments[halfway]):
        keys = () if evidence.settings is None else _commit(evidence.settings.loss.commitment)
        yield Finding(
            "latents_diverging",
            "severe",
            f"the commitment loss grew from {least:.3g} to {last:.3g}, in the second half of training "
            f"by a factor of {last / commitments[halfway]:.2g}",
            {"commitment": last, "halfway": commitments[halfway], "least": least, "step": validations[-1]["step"]},
            "the encoder keeps spreading its latents, faster than the codes can follow",
            (*keys, *slower(evidence)),
        )


def usage_dropping(evidence: Evidence) -> Iterator[Finding]:
    """Reconstruction gets better while codes fall out of use."""
    usages = [metrics.get("codebook/usage") for metrics in evidence.history]
    losses = [metrics.get("validation/loss/reconstruction") for metrics in evidence.history]
    known = [
        (usage, loss) for usage, loss in zip(usages, losses, strict=True) if usage is not None and loss is not None
    ]
    if len(known) < _LEAST:
        return
    (most, then), (usage, now) = max(known), known[-1]
    if most - usage > _FELL and now < then:
        lost = evidence.setting("dead_code_reset") is None
        yield Finding(
            "usage_dropping",
            "warning",
            f"usage fell from {most:.0%} to {usage:.0%} while the reconstruction loss improved",
            {"usage": usage, "most": most, "reconstruction": now, "reconstruction_then": then},
            "the encoder concentrates its latents on fewer codes, and "
            + ("dead codes are not reset" if lost else "codes lose their hits faster than they are reset"),
            (*reviving(evidence), *slower(evidence)),
        )


def _halfway(settings: RunSettings | None, steps: list[int]) -> int:
    """The place of the last of some steps until which weights went half the way that they went in all, or less."""

    def way(step: int) -> float:
        return step if settings is None else cumulative_lr(settings.training, step)

    return max(0, bisect_right(steps, way(steps[-1]) / 2, key=way) - 1)


def _falls_behind(evidence: Evidence) -> bool:
    for number, _ in enumerate(evidence.levels):
        errors = [evidence.metric(number, "error", metrics) for metrics in (*evidence.history, *evidence.later)]
        known = [error for error in errors if error is not None]
        if len(known) >= _LEAST and known[-1] > _BEHIND * min(known[:-1]):
            return True
    return False


def _commit(weight: float) -> tuple[Change, ...]:
    return (Change("loss.commitment", f"{max(1.0, 4 * weight):g}", "keeps the latents close to their codes"),)
