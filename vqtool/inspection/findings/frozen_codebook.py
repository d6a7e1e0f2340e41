"""Codes that no longer move, where they should."""

from collections.abc import Iterator, Sequence
from typing import Any

from vqtool.config import RunSettings, learning_rate
from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.findings.advice import reviving

# Of movement, over the quantizing error.
_STILL = 1e-3
# Steps without which rest says nothing: codes move little in a few, and nobody minds. Averages forget in far fewer, so
# that in as many they have wandered all that they wander where latents rest.
_LONG = 100
# The part of its full value below which a learning rate moves nothing any more.
_COLD = 0.1


def codebook_frozen(evidence: Evidence) -> Iterator[Finding]:
    """A codebook that did not move while the learning rate was high."""
    if evidence.settings is None or _rests(evidence.settings, evidence):
        return
    stretch = _stretch(evidence.settings, evidence.history)
    for number, _ in evidence.codebooks:
        moves = [evidence.metric(number, "movement", metrics) for metrics in stretch[1:]]
        # What they moved from validation to validation is at least what they moved over all of them.
        path = sum(move for move in moves if move is not None)
        if moves and None not in moves and path < _STILL:
            first, last = stretch[0]["step"], stretch[-1]["step"]
            yield Finding(
                "codebook_frozen",
                "severe",
                f"the codes{evidence.which(number)} did not move from step {first:,} to step {last:,}",
                {"level": number, "movement": path, "since": first, "step": last},
                "the codes are not updated: the loss that trains them has almost no weight, or its gradient vanishes",
                (*_moving(evidence), *reviving(evidence)),
            )


def _stretch(settings: RunSettings, history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last validations at a high learning rate, as few as are so many steps apart; none where they are not."""
    training = settings.training
    warm = [
        metrics for metrics in history if learning_rate(training, metrics["step"]) >= _COLD * training.learning_rate
    ]
    for number in range(len(warm) - 2, -1, -1):
        if warm[-1]["step"] - warm[number]["step"] >= _LONG:
            return warm[number:]
    return []


def _rests(settings: RunSettings, evidence: Evidence) -> bool:
    """Whether codes may rest by right: averages of latents that no network moves arrive where they belong."""
    averages = getattr(evidence.setting("update"), "kind", None) == "ema"
    return averages and settings.model.encoder.kind == "identity"


def _moving(evidence: Evidence) -> Iterator[Change]:
    learning = evidence.setting("update")
    if getattr(learning, "kind", None) != "ema":
        yield Change(
            evidence.key("update.kind"), "ema", "updates the codes from the latents, independent of the loss weights"
        )
        return
    for name, usual in (("decay", 0.9), ("min_ema_hits", 15.0)):
        if getattr(learning, name) > usual:
            yield Change(
                evidence.key(f"update.{name}"),
                f"{usual:g}",
                "averages over fewer steps, so that the codes follow the latents",
            )
