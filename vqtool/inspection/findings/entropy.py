"""A soft assignment that says little of the hard one."""

from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding

# Entropies, over ln K.
_EVEN, _UNEVEN = 0.95, 0.8
# Mean entropy of single assignments below which these are as hard as the hard ones.
_SURE = 1e-3


def temperature_hot(evidence: Evidence) -> Iterator[Finding]:
    """Soft entropy near 1 while hard use is uneven."""
    if not _weighs(evidence):
        return
    for number, usage in enumerate(evidence.levels):
        soft = evidence.metric(number, "soft_entropy")
        if soft is not None and soft > _EVEN and usage.entropy < _UNEVEN:
            yield Finding(
                "temperature_hot",
                "warning",
                f"the soft assignment{evidence.where(number)} is even (entropy {soft:.3f} of 1), the hard one is not "
                f"({usage.entropy:.3f})",
                {"level": number, "soft_entropy": soft, "entropy": usage.entropy},
                "the temperature is high against the distances: every latent belongs a little to every code, and the "
                "entropy loss is content",
                _in_units_of_the_error(evidence),
            )


def temperature_cold(evidence: Evidence) -> Iterator[Finding]:
    """So cold that the regulariser has no gradient."""
    if not _weighs(evidence):
        return
    for number, _ in enumerate(evidence.levels):
        own = evidence.metric(number, "sample_entropy")
        if own is not None and own < _SURE:
            yield Finding(
                "temperature_cold",
                "warning",
                f"each latent{evidence.where(number)} belongs softly to one code alone (mean entropy {own:.2g} of 1)",
                {"level": number, "sample_entropy": own},
                "the temperature is low against the distances: the soft assignment is the hard one, and the entropy "
                "loss has no gradient",
                _in_units_of_the_error(evidence),
            )


def _weighs(evidence: Evidence) -> bool:
    return evidence.settings is not None and evidence.settings.loss.entropy > 0


def _in_units_of_the_error(evidence: Evidence) -> tuple[Change, ...]:
    if evidence.setting("temperature_unit") is None:
        return ()
    unit = Change(evidence.key("temperature_unit"), "error", "whatever the latents' units")
    warmth = Change(evidence.key("temperature"), "2.0", "Gaussians as wide as the quantizing error")
    return (warmth,) if evidence.setting("temperature_unit") == "error" else (unit, warmth)
