"""Findings about codes that stop moving in training."""

from collections.abc import Iterator, Sequence
from typing import Any

from vqtool.config import RunSettings, learning_rate
from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.findings.advice import move_codes_to_latents

# RMS movement of the codes, over the RMS quantization error, below which they are frozen.
_MAX_FROZEN_MOVEMENT = 1e-3
# In fewer steps, healthy codes can move as little. This is many times the memory of EMA codes: around constant latents
# they fluctuate as far in this number of steps as in more.
_MIN_STEPS = 100
# Learning rate, as a fraction of its maximum, below which codes need not move.
_MIN_LR_FRACTION = 0.1
# Advised values of EMA settings, if those of the run are larger.
_MAX_SUGGESTED_EMA = {"decay": 0.9, "min_ema_hits": 15.0}


def codebook_frozen(evidence: Evidence) -> Iterator[Finding]:
    """Report codebooks whose codes moved by less than 0.1% of the RMS quantization error in 100 or more steps.

    These are the last steps with at least a tenth of the maximum learning rate.

    Not reported for EMA updates with an identity encoder: fixed latents let the codes converge.
    """
    settings, update = evidence.settings, evidence.quantizer_setting("update")
    uses_ema = getattr(update, "kind", None) == "ema"
    if settings is None or (uses_ema and settings.model.encoder.kind == "identity"):
        return
    window = _validations_at_high_lr(settings, evidence.history)
    for level, _ in evidence.codebooks:
        movements = [evidence.metric(level, "movement", validation) for validation in window[1:]]
        # The sum of the movements between validations is an upper bound of the movement over the whole window.
        total_movement = sum(movement for movement in movements if movement is not None)
        if movements and None not in movements and total_movement < _MAX_FROZEN_MOVEMENT:
            first, last = window[0]["step"], window[-1]["step"]
            yield Finding(
                "codebook_frozen",
                "severe",
                f"the codes{evidence.codebook_suffix(level)} did not move from step {first:,} to step {last:,}",
                {"level": level, "movement": total_movement, "since": first, "step": last},
                "the codes are not updated: the loss that trains them has almost no weight, or its gradient vanishes",
                (*_update_codes(evidence), *move_codes_to_latents(evidence)),
            )


def _validations_at_high_lr(settings: RunSettings, history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the latest validations at a high learning rate, as few as span at least 100 steps; empty if none do.

    High is at least a tenth of the maximum learning rate.
    """
    training = settings.training
    min_lr = _MIN_LR_FRACTION * training.learning_rate
    validations = [metrics for metrics in history if learning_rate(training, metrics["step"]) >= min_lr]
    for first in range(len(validations) - 2, -1, -1):
        if validations[-1]["step"] - validations[first]["step"] >= _MIN_STEPS:
            return validations[first:]
    return []


def _update_codes(evidence: Evidence) -> Iterator[Change]:
    """Yield EMA instead of another update, or for EMA a shorter memory."""
    update = evidence.quantizer_setting("update")
    if getattr(update, "kind", None) != "ema":
        yield Change(
            evidence.quantizer_key("update.kind"),
            "ema",
            "updates the codes from the latents, independent of the loss weights",
        )
        return
    for name, value in _MAX_SUGGESTED_EMA.items():
        if getattr(update, name) > value:
            yield Change(
                evidence.quantizer_key(f"update.{name}"),
                f"{value:g}",
                "averages over fewer steps, so that the codes follow the latents",
            )
