"""Trends over the validations of a run."""

from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.findings.advice import reviving, slower

# Validations without which there is no trend.
_LEAST = 4
# By what commitment, and the part of the latents' variance that is lost, must have grown since they were least.
_COMMITMENT_GREW, _ERROR_GREW = 3.0, 1.5
# By what part of the codebook usage must have fallen.
_FELL = 0.1


def encoder_runs_away(evidence: Evidence) -> Iterator[Finding]:
    """Commitment grows, and codes fall behind: the encoder spreads its latents faster than codes follow."""
    tag = "validation/loss/commitment"
    commitments = [metrics[tag] for metrics in evidence.history if tag in metrics]
    if len(commitments) < _LEAST:
        return
    least = min(commitments[:-1])
    growing = commitments[-1] > commitments[-2] > commitments[-3]
    if growing and commitments[-1] > _COMMITMENT_GREW * least and _falls_behind(evidence):
        keys = () if evidence.settings is None else _commit(evidence.settings.loss.commitment)
        yield Finding(
            "encoder_runs_away",
            "severe",
            f"the commitment loss has grown from {least:.3g} to {commitments[-1]:.3g}",
            {"commitment": commitments[-1], "least": least},
            "the encoder spreads its latents faster than the codes follow",
            (*keys, *slower(evidence)),
        )


def usage_falls(evidence: Evidence) -> Iterator[Finding]:
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
        yield Finding(
            "usage_falls",
            "warning",
            f"usage has fallen from {most:.0%} to {usage:.0%} while reconstruction got better",
            {"usage": usage, "most": most, "reconstruction": now, "reconstruction_then": then},
            "the encoder draws its latents together on fewer codes, and nothing brings the others back",
            (*reviving(evidence), *slower(evidence)),
        )


def _falls_behind(evidence: Evidence) -> bool:
    for number, _ in enumerate(evidence.levels):
        errors = [evidence.metric(number, "error", metrics) for metrics in evidence.history]
        known = [error for error in errors if error is not None]
        if len(known) >= _LEAST and known[-1] > _ERROR_GREW * min(known[:-1]):
            return True
    return False


def _commit(weight: float) -> tuple[Change, ...]:
    return (Change("loss.commitment", f"{max(1.0, 4 * weight):g}", "holds latents to their codes"),)
