"""Several runs side by side: their figures, and the settings in which they differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vqtool.config import RunSettings
from vqtool.data import spec_of
from vqtool.errors import CheckpointError, ConfigError
from vqtool.inspection.inspect_targets import Inspection
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory

_RECONSTRUCTION = "validation/loss/reconstruction"


@dataclass(frozen=True)
class Compared:
    """A run, or an index file, as a comparison shows it.

    Attributes:
        bits: that the indices of a sample take, L times the sum over levels of log2 K; None where L is not known.
        used_bits: what these indices carry at most, L times the entropies of their levels.
        reconstruction: of the validation pass that chose the model, in normalised units.
        step: after which that was.
        settings: of a run.
    """

    inspection: Inspection
    bits: float | None = None
    used_bits: float | None = None
    reconstruction: float | None = None
    step: int | None = None
    settings: RunSettings | None = None


def compared(inspection: Inspection, run: RunDirectory) -> Compared:
    """What is known of an inspected run; of anything else, its counts alone."""
    try:
        settings = run.settings()
        saved, _ = read_model(run.model)
        positions = math.prod(settings.model.encoder.grid(spec_of(settings.data).size))
    except (CheckpointError, ConfigError):
        return Compared(inspection)
    return Compared(
        inspection,
        bits=positions * sum(math.log2(level.codebook_size) for level in inspection.levels),
        used_bits=positions * sum(level.entropy_bits for level in inspection.levels),
        reconstruction=saved.metrics.get(_RECONSTRUCTION),
        step=saved.step,
        settings=settings,
    )


def differences(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """The settings in which runs differ, by dotted key, with the value of each; None where it has none.

    What only one kind of a block has is left out, for the kind says it; unless runs of that kind differ in it.
    """
    flat = [_flat(run.settings.model_dump(mode="json")) if run.settings else {} for run in runs]
    known = [own for own in flat if own]
    keys = sorted({key for own in known for key in own})
    return {
        key: [own.get(key) for own in flat]
        for key in keys
        if _differ([own[key] for own in known if key in own])
        or (any(key not in own for own in known) and not _said_by_kind(key, known))
    }


def grouped(values: Sequence[Any]) -> str:
    """Values with the numbers of the runs that have them: `conv2d (1, 3), mlp (2)`; runs without one are left out."""
    numbers: dict[str, list[str]] = {}
    for number, value in enumerate(values, 1):
        if value is not None:
            numbers.setdefault(str(value), []).append(str(number))
    return ", ".join(f"{value} ({', '.join(own)})" for value, own in numbers.items())


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)


def _said_by_kind(key: str, flat: Sequence[dict[str, Any]]) -> bool:
    """Whether a block that the key is in has other kinds in other runs."""
    parts = key.split(".")
    kinds = [".".join([*parts[:depth], "kind"]) for depth in range(1, len(parts))]
    return any(_differ([own.get(kind) for own in flat]) for kind in kinds if kind != key)


def same_data(runs: Sequence[Compared]) -> bool:
    """Whether losses can be compared: all runs have the same data settings."""
    return not any(key.startswith("data.") for key in differences(runs))


# Explains HEADER.
MEANING = (
    "Usage (used codes / K) and perplexity (effective number of codes, exp(entropy)) are means over levels. "
    "Bits/token: entropy, summed over levels. Bits/sample: size of the indices of a sample, tokens per sample times "
    "log2 K, summed over levels. Recon. loss: reconstruction loss of the best validation, in normalised units. Step: "
    "step of that validation."
)
UNLIKE = "These runs have different data: their losses are not comparable."
HEADER = ("", "target", "K", "tokens", "usage", "perplexity", "bits/token", "bits/sample", "recon. loss", "step")


def table(runs: Sequence[Compared]) -> list[tuple[str, ...]]:
    """A row a run, under HEADER; means over levels."""
    return [(str(number), *_row(run)) for number, run in enumerate(runs, 1)]


def _row(run: Compared) -> tuple[str, ...]:
    levels = run.inspection.levels
    sizes = sorted({level.codebook_size for level in levels})
    codes = " ".join(f"{size:,}" for size in sizes)
    count = len(levels)
    return (
        run.inspection.target,
        f"{count} x {codes}" if count > 1 else codes,
        f"{run.inspection.tokens:,}",
        f"{sum(level.usage for level in levels) / count:.1%}",
        f"{sum(level.perplexity for level in levels) / count:,.1f}",
        f"{sum(level.entropy_bits for level in levels):.2f}",
        "" if run.bits is None else f"{run.bits:,.1f}",
        "" if run.reconstruction is None else f"{run.reconstruction:.4g}",
        "" if run.step is None else f"{run.step:,}",
    )


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            found |= _flat(item, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = "null" if item is None else item  # unlike a key that is not there
    return found
