"""`vqtool eval`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vqtool.cli.output import (
    DataArgument,
    DeviceOption,
    JsonOption,
    KeyOption,
    RunArgument,
    print_json,
    print_rich,
    table,
)

if TYPE_CHECKING:
    from vqtool.tokenizer import Report


def evaluate(
    run: RunArgument,
    data: DataArgument = None,
    key: KeyOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how well DATA, or the run's validation part, comes back from its indices."""
    from vqtool.tokenizer import load

    report = load(run, device).evaluate(data, key)
    print_json(_fields(report)) if as_json else print_rich(table(_rows(report)))


def _fields(report: "Report") -> dict[str, Any]:
    return {
        "samples": report.evaluation.samples,
        **asdict(report.fidelity),
        "bits_per_sample": report.bits_per_sample,
        "losses": report.evaluation.losses,
        "levels": [asdict(level) for level in report.evaluation.levels],
    }


def _rows(report: "Report") -> list[tuple[str, ...]]:
    fidelity, evaluation = report.fidelity, report.evaluation
    rows: list[tuple[str, ...]] = [("samples", f"{evaluation.samples:,}", "")]
    if fidelity.accuracy is not None:
        rows.append(("accuracy", f"{fidelity.accuracy:.4%}", "cells whose class comes back"))
    if fidelity.mse is not None:
        rows.append(("mse", f"{fidelity.mse:.6g}", "mean squared error, in the data's own units"))
        nmse = "none" if fidelity.nmse is None else f"{fidelity.nmse:.6g}"
        rows.append(("nmse", nmse, "mse over the data's variance about its mean: 0 is perfect, 1 says nothing"))
    rows.append(("bits per sample", f"{report.bits_per_sample:,.1f}", "positions times log2 of the codes"))
    rows += [(f"loss/{name}", f"{value:.4g}", "in normalised units") for name, value in evaluation.losses.items()]
    for number, level in enumerate(evaluation.levels):
        name = "usage" if len(evaluation.levels) == 1 else f"level {number} usage"
        rows.append(
            (name, f"{level.usage:.1%}", f"perplexity {level.perplexity:,.1f} of {level.codebook_size:,} codes")
        )
    return rows
