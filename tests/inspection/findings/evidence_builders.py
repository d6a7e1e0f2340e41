"""Functions that build evidence and settings for tests of single findings."""

from typing import Any

import torch

from vqtool.config import RunSettings
from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings import diagnose
from vqtool.metrics.usage import usage_from_counts

MLP = {"kind": "mlp", "width": 8}


def make_settings(quantizer: dict[str, Any] | None = None, **blocks: Any) -> RunSettings:
    """Return settings of a run; by default an MLP encoder, and 16 codes of 4 dimensions."""
    inner = {"kind": "vector", "codebook_size": 16, "codebook_dim": 4}
    return RunSettings.model_validate(
        {
            "data": {"kind": "tensors", "path": "/data.npy"},
            "model": {"encoder": blocks.pop("encoder", MLP), "quantizer": quantizer or inner},
            "training": {"steps": 1000, "schedule": "constant", "warmup_steps": 0},
            **blocks,
        }
    )


def residual_block(**more: Any) -> dict[str, Any]:
    """Return the config block of a residual quantizer, by default of two levels of 16 codes."""
    return {"kind": "residual", "levels": 2, "quantizer": {"kind": "vector", "codebook_size": 16}, **more}


def make_evidence(*counts: list[int], metrics: dict[str, float] | None = None, **more: Any) -> Evidence:
    """Return the evidence of levels with these hits per code; by default one level of 16 codes with 20 hits each."""
    levels = [usage_from_counts(torch.tensor(hits)) for hits in counts or [[20] * 16]]
    return Evidence(levels, metrics=metrics or {}, **more)


def finding_names(evidence: Evidence) -> set[str]:
    """Return the names of all findings."""
    return {finding.name for finding in diagnose(evidence)}


def severities(evidence: Evidence) -> dict[str, str]:
    """Return the severity of each finding, by name."""
    return {finding.name: finding.severity for finding in diagnose(evidence)}


def validations(tag: str, *values: float, **others: list[float]) -> list[dict[str, Any]]:
    """Return validations at steps 100, 200, ... with a value each of the metric `tag`, and of the `others` by tag."""
    return [
        {"step": 100 * (number + 1), tag: value, **{name: series[number] for name, series in others.items()}}
        for number, value in enumerate(values)
    ]


def find(evidence: Evidence, name: str) -> Finding:
    """Return the only finding with this name."""
    (finding,) = [finding for finding in diagnose(evidence) if finding.name == name]
    return finding


def suggested_changes(evidence: Evidence, name: str) -> dict[str, str]:
    """Return the changes that a finding suggests, values by key."""
    return {change.key: change.value for change in find(evidence, name).changes}
