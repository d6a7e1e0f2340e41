"""`vqtool eval`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    from vqtool.inference.rate_distortion import RateDistortion
    from vqtool.inference.tokenizer import Report


def evaluate(
    run: RunArgument,
    data: DataArgument = None,
    key: KeyOption = None,
    device: DeviceOption = None,
    with_rate_distortion: Annotated[
        bool,
        typer.Option("--rate-distortion", help="Compare the quantization error with k-means on the run's latents."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how well data is reconstructed from its indices.

    Without DATA, evaluate the run's validation split.
    """
    from vqtool.inference.tokenizer import load

    tokenizer = load(run, device)
    report = tokenizer.evaluate(data, key)
    fields, rows = _fields(report), _rows(report)
    if with_rate_distortion:
        from vqtool.inference.rate_distortion import rate_distortion

        found = rate_distortion(tokenizer, data, key)
        fields["rate_distortion"] = asdict(found)
        rows += _rate_distortion_rows(found)
    print_json(fields) if as_json else print_rich(table(rows))


def _fields(report: "Report") -> dict[str, Any]:
    return {
        "samples": report.evaluation.samples,
        **asdict(report.fidelity),
        "bits_per_sample": report.bits_per_sample,
        "collision_rate": report.evaluation.distinct and report.evaluation.distinct.collision_rate,
        "losses": report.evaluation.losses,
        "levels": [asdict(level) for level in report.evaluation.levels],
    }


def _rows(report: "Report") -> list[tuple[str, ...]]:
    fidelity, evaluation = report.fidelity, report.evaluation
    rows: list[tuple[str, ...]] = [("samples", f"{evaluation.samples:,}", "")]
    if fidelity.accuracy is not None:
        baseline = f"always the most common class: {fidelity.baseline_accuracy:.4%}"
        rows.append(("accuracy", f"{fidelity.accuracy:.4%}", f"cells with the correct class; {baseline}"))
    if fidelity.mse is not None:
        rows.append(("mse", f"{fidelity.mse:.6g}", "mean squared error, in the units of the data"))
        nmse = "none (constant data)" if fidelity.nmse is None else f"{fidelity.nmse:.6g}"
        rows.append(("nmse", nmse, "mse / variance of the data; 0: perfect, 1: no better than the mean"))
    units = {
        "total": "weighted sum",
        "reconstruction": "in normalised units" if fidelity.accuracy is None else "cross-entropy, in nats",
        "commitment": "mean squared, in the units of the latents",
        "entropy": "in nats; lower: more even usage",
    }
    rows.append(("bits per sample", f"{report.bits_per_sample:,.1f}", "tokens per sample * log2(codebook size)"))
    rows += [(f"loss/{name}", f"{value:.4g}", units[name]) for name, value in evaluation.losses.items()]
    if evaluation.distinct:
        ids = f"{evaluation.distinct.ids:,} distinct ids in {evaluation.distinct.rows:,} rows"
        rows.append(("collision rate", f"{evaluation.distinct.collision_rate:.4%}", ids))
    for number, level in enumerate(evaluation.levels):
        name = "usage" if len(evaluation.levels) == 1 else f"level {number} usage"
        rows.append(
            (name, f"{level.usage:.1%}", f"perplexity {level.perplexity:,.1f} of {level.codebook_size:,} codes")
        )
    return rows


def _rate_distortion_rows(found: "RateDistortion") -> list[tuple[str, ...]]:
    what = f"k-means on {found.fitted_on:,} training latents, best of {found.n_init} runs"
    reference = "none" if found.reference is None else f"{found.reference:.4g}"
    rows: list[tuple[str, ...]] = [
        ("quantization error", f"{found.error:.4g}", "mean squared, per latent dimension"),
        ("reference", reference, what if found.reference is not None else "fewer training latents than codes"),
    ]
    if found.ratio is not None:
        rows.append(("error / reference", f"{found.ratio:.3f}", "1: as good as k-means; below: better; above: worse"))
    if found.shannon_bound is not None:
        rows.append(("Shannon bound", f"{found.shannon_bound:.4g}", "lowest mse that any code of this rate can reach"))
    return rows
