"""A decoder that does without the codes."""

from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.findings.advice import reviving
from vqtool.inspection.findings.trends import latents_diverging, usage_dropping

# What shuffling indices must multiply the reconstruction loss by, at least.
_HEEDS = 1.05
# The part of the latents' variance that is lost, below which codes carry enough for a decoder to heed.
_SOME = 0.7


def decoder_ignores_codes(evidence: Evidence) -> Iterator[Finding]:
    """Reconstruction hardly changes when samples get each other's indices."""
    own = evidence.metrics.get("validation/loss/unshuffled")
    others = evidence.metrics.get("validation/loss/shuffled")
    if max(usage.codebook_size for usage in evidence.levels) == 1:  # a single code has nothing to say
        return
    if own is not None and others is not None and others < _HEEDS * own:
        restless = any(True for find in (latents_diverging, usage_dropping) for _ in find(evidence))
        yield Finding(
            "decoder_ignores_codes",
            "severe",
            f"the reconstruction loss hardly depends on the indices: {others:.4g} with those of another sample, "
            f"{own:.4g} with the sample's own",
            {"shuffled": others, "unshuffled": own},
            "the latents move faster than the decoder can learn the codes; first make the encoder stable"
            if restless
            else "the codes carry no information, or the decoder has not learned to use them yet",
            (*(() if restless else _learning(evidence)), *reviving(evidence)),
        )


def _learning(evidence: Evidence) -> Iterator[Change]:
    """More learning, where codes carry something. Not while latents are on the move: that would only drive them on."""
    errors = [evidence.metric(number, "error") for number, _ in enumerate(evidence.levels)]
    if evidence.settings and all(error is not None and error < _SOME for error in errors):
        training = evidence.settings.training
        yield Change("training.steps", str(2 * training.steps), "more steps for the decoder to learn the codes")
        yield Change("training.learning_rate", f"{3 * training.learning_rate:.1g}", "the decoder learns faster")
