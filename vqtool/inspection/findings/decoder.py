"""Findings about a decoder whose output does not depend on the indices."""

from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.findings.advice import move_codes_to_latents
from vqtool.inspection.findings.trends import latents_diverging, usage_dropping

# Reconstruction loss with the indices of another sample, over the loss with a sample's own indices.
_MIN_SHUFFLED_LOSS_RATIO = 1.05
# Quantization error, over the variance of the latents, below which codes carry enough information to learn from.
_MAX_INFORMATIVE_ERROR = 0.7


def decoder_ignores_codes(evidence: Evidence) -> Iterator[Finding]:
    """Report a reconstruction loss that rises by less than 5% if samples are decoded from each other's indices."""
    if max(usage.codebook_size for usage in evidence.levels) == 1:  # the only index carries no information
        return
    unshuffled = evidence.metrics.get("validation/loss/unshuffled")
    shuffled = evidence.metrics.get("validation/loss/shuffled")
    if unshuffled is not None and shuffled is not None and shuffled < _MIN_SHUFFLED_LOSS_RATIO * unshuffled:
        unstable = any(True for find in (latents_diverging, usage_dropping) for _ in find(evidence))
        yield Finding(
            "decoder_ignores_codes",
            "severe",
            f"the reconstruction loss hardly depends on the indices: {shuffled:.4g} with those of another sample, "
            f"{unshuffled:.4g} with the sample's own",
            {"shuffled": shuffled, "unshuffled": unshuffled},
            "the latents move faster than the decoder can learn the codes; first make the encoder stable"
            if unstable
            else "the codes carry no information, or the decoder has not learned to use them yet",
            # A higher learning rate would make an unstable encoder worse.
            (*(() if unstable else _train_decoder_more(evidence)), *move_codes_to_latents(evidence)),
        )


def _train_decoder_more(evidence: Evidence) -> Iterator[Change]:
    """Yield two changes: double the steps, and triple the learning rate, rounded to one significant digit.

    They are only yielded if the settings are known and the codes of every level carry information: the quantization
    error of every level must be known, and below 0.7 times the variance of the level's latents.
    """
    errors = [evidence.metric(level, "error") for level in range(len(evidence.levels))]
    if evidence.settings and all(error is not None and error < _MAX_INFORMATIVE_ERROR for error in errors):
        training = evidence.settings.training
        yield Change("training.steps", str(2 * training.steps), "more steps for the decoder to learn the codes")
        yield Change("training.learning_rate", f"{3 * training.learning_rate:.1g}", "the decoder learns faster")
