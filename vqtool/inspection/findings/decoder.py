"""A decoder that does without the codes."""

from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings.advice import reviving

# What shuffling indices must multiply the reconstruction loss by, at least.
_HEEDS = 1.05


def decoder_ignores_codes(evidence: Evidence) -> Iterator[Finding]:
    """Reconstruction hardly changes when samples get each other's indices."""
    own = evidence.metrics.get("validation/loss/reconstruction")
    others = evidence.metrics.get("validation/loss/shuffled")
    if own is not None and others is not None and others < _HEEDS * own:
        yield Finding(
            "decoder_ignores_codes",
            "severe",
            f"from another sample's indices, samples come back as well: a loss of {others:.4g} against {own:.4g}",
            {"shuffled": others, "reconstruction": own},
            "the decoder says the same whatever the codes: they carry nothing, or training has only begun",
            tuple(reviving(evidence)),
        )
