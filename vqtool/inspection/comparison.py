"""Tables shared by the terminal and the HTML report: the levels of one target, and several targets side by side.

Shapes: K codes, L tokens per sample, Q levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vqtool.config import RunSettings
from vqtool.data import spec_of
from vqtool.errors import CheckpointError, ConfigError
from vqtool.inspection.inspect_targets import Inspection
from vqtool.metrics.usage import Usage
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory

LEVEL_HEADER = ("level", "K", "used", "usage", "expected", "dead", "perplexity", "bits")
LEVEL_LEGEND = (
    "K: codebook size. Used: codes with at least one hit; usage: used / K. Expected: used codes for uniform usage with "
    "this number of tokens. Dead: codes without hits. Perplexity: effective number of codes, exp(entropy). Bits: "
    "entropy per token, at most log2 K."
)
COMPARISON_HEADER = (
    "", "target", "K", "tokens", "usage", "perplexity", "bits/token", "bits/sample", "recon. loss", "step"
)  # fmt: skip
COMPARISON_LEGEND = (
    "Usage (used codes / K) and perplexity (effective number of codes, exp(entropy)) are means over levels. "
    "Bits/token: entropy, summed over levels. Bits/sample: size of the indices of a sample, tokens per sample times "
    "log2 K, summed over levels. Recon. loss: reconstruction loss of the best validation, in normalised units. Step: "
    "step of that validation."
)
DIFFERENT_DATA_NOTE = "These runs have different data: their losses are not comparable."

_RECONSTRUCTION_TAG = "validation/loss/reconstruction"


@dataclass(frozen=True)
class TargetSummary:
    """Summary of a run or an index file in a comparison.

    For an index file, or a run whose settings or model cannot be read, all attributes except `inspection` are None.

    Attributes:
        inspection: usage and findings.
        bits: size of the indices of a sample in bits, L times the sum over levels of log2 K.
        used_bits: entropy of the indices of a sample in bits, L times the sum over levels of the entropy of the counts.
        reconstruction: reconstruction loss of the best validation, in normalised units; None if it is unknown.
        step: training step of the best validation; None if it is unknown.
        settings: settings of the run.
    """

    inspection: Inspection
    bits: float | None = None
    used_bits: float | None = None
    reconstruction: float | None = None
    step: int | None = None
    settings: RunSettings | None = None


def summarize_target(inspection: Inspection, run: RunDirectory) -> TargetSummary:
    """Return the summary of an inspected target; the inspection alone if the target is not a readable run."""
    try:
        settings = run.settings()
        saved, _ = read_model(run.model)
        tokens_per_sample = math.prod(settings.model.encoder.grid(spec_of(settings.data).size))
    except (CheckpointError, ConfigError):
        return TargetSummary(inspection)
    return TargetSummary(
        inspection,
        bits=tokens_per_sample * sum(math.log2(level.codebook_size) for level in inspection.levels),
        used_bits=tokens_per_sample * sum(level.entropy_bits for level in inspection.levels),
        reconstruction=saved.metrics.get(_RECONSTRUCTION_TAG),
        step=saved.step,
        settings=settings,
    )


def differing_settings(targets: Sequence[TargetSummary]) -> dict[str, list[Any]]:
    """Return the settings in which runs differ: by dotted key, the value in each target, None if it has no such key.

    A setting whose value is null has the value "null". A key that exists only for one `kind` of a block is left out if
    the differing `kind` is listed already, unless runs of that kind differ in it.
    """
    settings = [_flatten(target.settings.model_dump(mode="json")) if target.settings else {} for target in targets]
    runs = [run for run in settings if run]
    keys = sorted({key for run in runs for key in run})
    return {
        key: [run.get(key) for run in settings]
        for key in keys
        if _differ([run[key] for run in runs if key in run])
        or (any(key not in run for run in runs) and not _belongs_to_differing_kind(key, runs))
    }


def group_by_value(values: Sequence[Any]) -> str:
    """Return the values of targets 1, 2, ... with their numbers: `conv2d (1, 3), mlp (2)`; None is left out."""
    numbers: dict[str, list[str]] = {}
    for number, value in enumerate(values, 1):
        if value is not None:
            numbers.setdefault(str(value), []).append(str(number))
    return ", ".join(f"{value} ({', '.join(group)})" for value, group in numbers.items())


def same_data(targets: Sequence[TargetSummary]) -> bool:
    """Return whether losses are comparable: no data setting differs between runs."""
    return not any(key.startswith("data.") for key in differing_settings(targets))


def comparison_rows(targets: Sequence[TargetSummary]) -> list[tuple[str, ...]]:
    """Return one row per target, with the columns of COMPARISON_HEADER; unknown values are empty."""
    rows: list[tuple[str, ...]] = []
    for number, target in enumerate(targets, 1):
        levels = target.inspection.levels
        sizes = " ".join(f"{size:,}" for size in sorted({level.codebook_size for level in levels}))
        row = (
            str(number),
            target.inspection.target,
            f"{len(levels)} x {sizes}" if len(levels) > 1 else sizes,
            f"{target.inspection.tokens:,}",
            f"{sum(level.usage for level in levels) / len(levels):.1%}",
            f"{sum(level.perplexity for level in levels) / len(levels):,.1f}",
            f"{sum(level.entropy_bits for level in levels):.2f}",
            "" if target.bits is None else f"{target.bits:,.1f}",
            "" if target.reconstruction is None else f"{target.reconstruction:.4g}",
            "" if target.step is None else f"{target.step:,}",
        )
        rows.append(row)
    return rows


def level_rows(levels: Sequence[Usage]) -> list[tuple[str, ...]]:
    """Return one row per level, with the columns of LEVEL_HEADER."""
    return [
        (
            str(number),
            f"{level.codebook_size:,}",
            f"{level.used:,}",
            f"{level.usage:.1%}",
            f"{level.expected_used:,.1f}",
            f"{level.dead:,}",
            f"{level.perplexity:,.1f}",
            f"{level.entropy_bits:.3f}",
        )
        for number, level in enumerate(levels)
    ]


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = "null" if value is None else value  # None is for runs without the key
    return flat


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)


def _belongs_to_differing_kind(key: str, runs: Sequence[dict[str, Any]]) -> bool:
    """Return whether a block around `key` has different kinds in these flattened settings."""
    parts = key.split(".")
    kinds = [".".join([*parts[:depth], "kind"]) for depth in range(1, len(parts))]
    return any(_differ([run.get(kind) for run in runs]) for kind in kinds if kind != key)
