"""Findings about the temperature of the soft assignment, reported if the entropy loss has a weight."""

from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding

# Entropies are fractions of ln K.
# Entropy of the mean soft assignment above which it is nearly uniform, and of the counts below which they are not.
_MIN_UNIFORM_SOFT_ENTROPY, _MIN_UNIFORM_ENTROPY = 0.95, 0.8
# Mean entropy of the soft assignment of one latent, below which it is practically the hard assignment.
_MAX_HARD_SAMPLE_ENTROPY = 1e-3
# Temperatures are in units of the mean squared quantization error of one dimension. At 2 the soft assignment is the
# posterior of Gaussians of this variance around the codes. Hard assignments at a much lower temperature are due to the
# temperature; at a higher one they are correct, because the latents form clusters that are far apart.
_MAX_LOW_TEMPERATURE, _SUGGESTED_TEMPERATURE = 0.2, 2.0


def temperature_too_high(evidence: Evidence) -> Iterator[Finding]:
    """Report levels whose mean soft assignment is nearly uniform although their counts are not."""
    if not _has_entropy_loss(evidence):
        return
    for level, usage in enumerate(evidence.levels):
        soft_entropy = evidence.metric(level, "soft_entropy")
        if (
            soft_entropy is not None
            and soft_entropy > _MIN_UNIFORM_SOFT_ENTROPY
            and usage.entropy < _MIN_UNIFORM_ENTROPY
        ):
            yield Finding(
                "temperature_too_high",
                "warning",
                f"the soft assignment{evidence.level_suffix(level)} is nearly uniform (entropy {soft_entropy:.3f} of "
                f"1), the hard assignment is not ({usage.entropy:.3f})",
                {"level": level, "soft_entropy": soft_entropy, "entropy": usage.entropy},
                "the temperature is large compared with the squared distances: each latent is assigned softly to "
                "almost every code, and the entropy loss is already at its minimum",
                tuple(_set_temperature_to_error(evidence)),
            )


def temperature_too_low(evidence: Evidence) -> Iterator[Finding]:
    """Report levels whose soft assignment is practically hard, so that the entropy loss has no gradient.

    Only if the temperature is at most 0.2 times the mean squared quantization error of one dimension.
    """
    temperature = _temperature_over_error(evidence)
    if not _has_entropy_loss(evidence) or temperature is None or temperature > _MAX_LOW_TEMPERATURE:
        return
    for level in range(len(evidence.levels)):
        sample_entropy = evidence.metric(level, "sample_entropy")
        if sample_entropy is not None and sample_entropy < _MAX_HARD_SAMPLE_ENTROPY:
            yield Finding(
                "temperature_too_low",
                "warning",
                f"the soft assignment{evidence.level_suffix(level)} assigns each latent to one code (mean entropy "
                f"{sample_entropy:.2g} of 1)",
                {"level": level, "sample_entropy": sample_entropy},
                "the temperature is small compared with the squared distances: the soft assignment equals the hard "
                "one, and the entropy loss has no gradient",
                tuple(_set_temperature_to_error(evidence)),
            )


def _has_entropy_loss(evidence: Evidence) -> bool:
    return evidence.settings is not None and evidence.settings.loss.entropy > 0


def _temperature_over_error(evidence: Evidence) -> float | None:
    """Return temperature / mean squared quantization error of one dimension; None if one of them is unknown."""
    temperature = evidence.quantizer_setting("temperature")
    error = evidence.metrics.get("validation/loss/commitment")
    if temperature is None or evidence.quantizer_setting("temperature_unit") == "quantization_error":
        return temperature
    return None if error is None else float(temperature) / max(error, 1e-30)


def _set_temperature_to_error(evidence: Evidence) -> Iterator[Change]:
    """Yield the changes that set the temperature to twice the mean squared quantization error per dimension.

    A learned codebook gets `temperature_unit: quantization_error` and `temperature: 2`, each unless already set. Fixed
    codes have no `temperature_unit`: they get twice the validation error as a number, and no change if it is unknown.
    """
    key, why = evidence.quantizer_key("temperature"), "twice the mean squared quantization error of one dimension"
    unit = evidence.quantizer_setting("temperature_unit")
    if unit is None:  # fixed codes have no temperature_unit, and their error hardly changes in training
        error = evidence.metrics.get("validation/loss/commitment")
        if error is not None:
            yield Change(key, f"{_SUGGESTED_TEMPERATURE * error:.2g}", why)
        return
    if unit != "quantization_error":
        yield Change(
            evidence.quantizer_key("temperature_unit"),
            "quantization_error",
            "makes the temperature independent of the scale of the latents",
        )
    if evidence.quantizer_setting("temperature") != _SUGGESTED_TEMPERATURE:
        yield Change(key, f"{_SUGGESTED_TEMPERATURE:g}", why)
