"""A soft assignment that says little of the hard one."""

from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding

# Entropies, over ln K.
_EVEN, _UNEVEN = 0.95, 0.8
# Mean entropy of single assignments below which these are as hard as the hard ones.
_SURE = 1e-3
# Of the temperature, in units of the mean squared quantizing error of one dimension: at 2 the soft assignment is that
# of Gaussians as wide as this error. Far below, the temperature is to blame where assignments are hard; else latents
# lie in clusters far apart, and are rightly sure.
_COLD, _WARM = 0.2, 2.0


def temperature_too_high(evidence: Evidence) -> Iterator[Finding]:
    """Soft entropy near 1 while hard use is uneven."""
    if not _weighs(evidence):
        return
    for number, usage in enumerate(evidence.levels):
        soft = evidence.metric(number, "soft_entropy")
        if soft is not None and soft > _EVEN and usage.entropy < _UNEVEN:
            yield Finding(
                "temperature_too_high",
                "warning",
                f"the soft assignment{evidence.where(number)} is nearly uniform (entropy {soft:.3f} of 1), the hard "
                f"assignment is not ({usage.entropy:.3f})",
                {"level": number, "soft_entropy": soft, "entropy": usage.entropy},
                "the temperature is large compared with the squared distances: each latent is assigned softly to "
                "almost every code, and the entropy loss is already at its minimum",
                _in_units_of_the_error(evidence),
            )


def temperature_too_low(evidence: Evidence) -> Iterator[Finding]:
    """So cold that the regulariser has no gradient."""
    temperature = _temperature(evidence)
    if not _weighs(evidence) or temperature is None or temperature > _COLD:
        return
    for number, _ in enumerate(evidence.levels):
        own = evidence.metric(number, "sample_entropy")
        if own is not None and own < _SURE:
            yield Finding(
                "temperature_too_low",
                "warning",
                f"the soft assignment{evidence.where(number)} assigns each latent to one code (mean entropy "
                f"{own:.2g} of 1)",
                {"level": number, "sample_entropy": own},
                "the temperature is small compared with the squared distances: the soft assignment equals the hard "
                "one, and the entropy loss has no gradient",
                _in_units_of_the_error(evidence),
            )


def _weighs(evidence: Evidence) -> bool:
    return evidence.settings is not None and evidence.settings.loss.entropy > 0


def _temperature(evidence: Evidence) -> float | None:
    """In units of the mean squared quantizing error of one dimension."""
    temperature, error = evidence.setting("temperature"), evidence.metrics.get("validation/loss/commitment")
    if temperature is None or evidence.setting("temperature_unit") == "quantization_error":
        return temperature
    return None if error is None else float(temperature) / max(error, 1e-30)


def _in_units_of_the_error(evidence: Evidence) -> tuple[Change, ...]:
    """A temperature that fits, as far as it is not set already."""
    error, warm = evidence.metrics.get("validation/loss/commitment"), f"{_WARM:g}"
    if evidence.setting("temperature_unit") is None:  # a grid of given codes: its error hardly changes
        value = None if error is None else f"{_WARM * error:.2g}"
        return (
            (Change(evidence.key("temperature"), value, "twice the mean squared quantization error of one dimension"),)
            if value
            else ()
        )
    changes = []
    if evidence.setting("temperature_unit") != "quantization_error":
        changes.append(
            Change(
                evidence.key("temperature_unit"),
                "quantization_error",
                "makes the temperature independent of the scale of the latents",
            )
        )
    if evidence.setting("temperature") != _WARM:
        changes.append(
            Change(evidence.key("temperature"), warm, "twice the mean squared quantization error of one dimension")
        )
    return tuple(changes)
