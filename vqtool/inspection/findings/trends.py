"""Findings about trends over the validations of a run."""

from bisect import bisect_right
from collections.abc import Iterator

from vqtool.config import RunSettings, cumulative_lr
from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.findings.advice import move_codes_to_latents, reduce_learning_rate

# Fewer validations do not show a trend.
_MIN_VALIDATIONS = 4
# Growth of the commitment loss from its minimum. Latents spread somewhat in any run, and the codes follow. If the
# relative quantization error has grown too, by `_MIN_ERROR_GROWTH`, the codes do not follow, and less growth suffices.
_MIN_GROWTH, _MIN_GROWTH_WITH_ERROR, _MIN_ERROR_GROWTH = 5.0, 3.0, 1.5
# Factor on this growth if it may be due to the start of training, where the loss of healthy runs grows 6 to 10 times.
_EARLY_GROWTH_FACTOR = 5.0
# Last commitment loss, as a fraction of the maximum, below which the latents have contracted again.
_MIN_FRACTION_OF_MAX = 0.5
# Growth in the second half of training, measured by the cumulative learning rate. In healthy runs the loss levels off.
# It doubles if the spread of the latents grows with the square root of the cumulative learning rate.
_MIN_SECOND_HALF_GROWTH = 2.0
# With fewer validation tokens, a single one can make the mean commitment loss grow by these factors.
_MIN_TOKENS = 100
# Drop of usage, a fraction of the codebook, from its maximum.
_MAX_USAGE_DROP = 0.1


def latents_diverging(evidence: Evidence) -> Iterator[Finding]:
    """Report a commitment loss that keeps growing: the encoder spreads its latents faster than the codes follow."""
    tag, validations = "validation/loss/commitment", [*evidence.history, *evidence.later]
    known = [metrics for metrics in validations if tag in metrics]
    if len(known) < _MIN_VALIDATIONS or evidence.levels[0].tokens < _MIN_TOKENS:
        return
    commitments, steps = [metrics[tag] for metrics in known], [metrics["step"] for metrics in known]
    minimum, last = min(commitments[:-1]), commitments[-1]
    halfway = _halfway_index(evidence.settings, steps)
    min_growth = _MIN_GROWTH_WITH_ERROR if _error_has_grown(evidence) else _MIN_GROWTH
    if steps[halfway] < evidence.early_steps:
        min_growth *= _EARLY_GROWTH_FACTOR
    keeps_growing = last > max(_MIN_FRACTION_OF_MAX * max(commitments), _MIN_SECOND_HALF_GROWTH * commitments[halfway])
    if keeps_growing and last > min_growth * minimum > 0:
        yield Finding(
            "latents_diverging",
            "severe",
            f"the commitment loss grew from {minimum:.3g} to {last:.3g}, in the second half of training "
            f"by a factor of {last / commitments[halfway]:.2g}",
            {"commitment": last, "halfway": commitments[halfway], "least": minimum, "step": validations[-1]["step"]},
            "the encoder keeps spreading its latents, faster than the codes can follow",
            (*_raise_commitment_weight(evidence), *reduce_learning_rate(evidence)),
        )


def usage_dropping(evidence: Evidence) -> Iterator[Finding]:
    """Report usage that fell by more than 10 percentage points from its maximum while the reconstruction improved."""
    usages = [metrics.get("codebook/usage") for metrics in evidence.history]
    losses = [metrics.get("validation/loss/reconstruction") for metrics in evidence.history]
    known = [
        (usage, loss) for usage, loss in zip(usages, losses, strict=True) if usage is not None and loss is not None
    ]
    if len(known) < _MIN_VALIDATIONS:
        return
    (max_usage, loss_at_max), (usage, loss) = max(known), known[-1]
    if max_usage - usage > _MAX_USAGE_DROP and loss < loss_at_max:
        no_reset = evidence.quantizer_setting("dead_code_reset") is None
        yield Finding(
            "usage_dropping",
            "warning",
            f"usage fell from {max_usage:.0%} to {usage:.0%} while the reconstruction loss improved",
            {"usage": usage, "most": max_usage, "reconstruction": loss, "reconstruction_then": loss_at_max},
            "the encoder concentrates its latents on fewer codes, and "
            + ("dead codes are not reset" if no_reset else "codes lose their hits faster than they are reset"),
            (*move_codes_to_latents(evidence), *reduce_learning_rate(evidence)),
        )


def _halfway_index(settings: RunSettings | None, steps: list[int]) -> int:
    """Return the index in `steps` of the last step in the first half of training; 0 if no step is in that half.

    Training ends at the last of `steps`. Both halves have the same cumulative learning rate, or the same number of
    steps if the settings are unknown. The midpoint belongs to the first half.

    Args:
        settings: settings of the run; None: unknown.
        steps: step numbers, ascending; at least one.
    """

    def progress(step: int) -> float:
        return step if settings is None else cumulative_lr(settings.training, step)

    return max(0, bisect_right(steps, progress(steps[-1]) / 2, key=progress) - 1)


def _error_has_grown(evidence: Evidence) -> bool:
    """Return whether the relative quantization error of any level has grown by more than half since its minimum."""
    for level in range(len(evidence.levels)):
        errors = [evidence.metric(level, "error", metrics) for metrics in (*evidence.history, *evidence.later)]
        known = [error for error in errors if error is not None]
        if len(known) >= _MIN_VALIDATIONS and known[-1] > _MIN_ERROR_GROWTH * min(known[:-1]):
            return True
    return False


def _raise_commitment_weight(evidence: Evidence) -> Iterator[Change]:
    if evidence.settings:
        weight = max(1.0, 4 * evidence.settings.loss.commitment)
        yield Change("loss.commitment", f"{weight:g}", "keeps the latents close to their codes")
