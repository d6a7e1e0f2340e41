"""The command `vqtool eval`."""

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
    from vqtool.inference.tokenizer import EvaluationReport


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
    fields, rows = _json_fields(report), _table_rows(report)
    if with_rate_distortion:
        from vqtool.inference.rate_distortion import rate_distortion

        result = rate_distortion(tokenizer, data, key)
        fields["rate_distortion"] = asdict(result)
        rows += _rate_distortion_rows(result)
    print_json(fields) if as_json else print_rich(table(rows))


def _json_fields(report: "EvaluationReport") -> dict[str, Any]:
    return {
        "samples": report.evaluation.samples,
        **asdict(report.reconstruction),
        "bits_per_sample": report.bits_per_sample,
        "collision_rate": report.evaluation.distinct and report.evaluation.distinct.collision_rate,
        "losses": report.evaluation.losses,
        "levels": [asdict(level) for level in report.evaluation.levels],
    }


def _table_rows(report: "EvaluationReport") -> list[tuple[str, ...]]:
    quality, evaluation = report.reconstruction, report.evaluation
    rows: list[tuple[str, ...]] = [("samples", f"{evaluation.samples:,}", "")]
    if quality.accuracy is not None:
        baseline = f"always the most common class: {quality.baseline_accuracy:.4%}"
        rows.append(("accuracy", f"{quality.accuracy:.4%}", f"cells with the correct class; {baseline}"))
    if quality.mse is not None:
        rows.append(("mse", f"{quality.mse:.6g}", "mean squared error, in the units of the data"))
        nmse = "none (constant data)" if quality.nmse is None else f"{quality.nmse:.6g}"
        rows.append(("nmse", nmse, "mse / variance of the data; 0: perfect, 1: no better than the mean"))
    units = {
        "total": "weighted sum",
        "reconstruction": "in normalised units" if quality.accuracy is None else "cross-entropy, in nats",
        "commitment": "mean squared, in the units of the latents",
        "entropy": "in nats; lower: more even usage",
    }
    rows.append(("bits per sample", f"{report.bits_per_sample:,.1f}", "tokens per sample * log2(codebook size)"))
    rows += [(f"loss/{name}", f"{value:.4g}", units[name]) for name, value in evaluation.losses.items()]
    if evaluation.distinct:
        ids = f"{evaluation.distinct.ids:,} distinct ids in {evaluation.distinct.rows:,} rows"
        rows.append(("collision rate", f"{evaluation.distinct.collision_rate:.4%}", ids))
    for index, level in enumerate(evaluation.levels):
        name = "usage" if len(evaluation.levels) == 1 else f"level {index} usage"
        rows.append(
            (name, f"{level.usage:.1%}", f"perplexity {level.perplexity:,.1f} of {level.codebook_size:,} codes")
        )
    return rows


def _rate_distortion_rows(result: "RateDistortion") -> list[tuple[str, ...]]:
    explanation = f"k-means on {result.fitted_on:,} training latents, best of {result.n_init} runs"
    reference = "none" if result.reference is None else f"{result.reference:.4g}"
    rows: list[tuple[str, ...]] = [
        ("quantization error", f"{result.error:.4g}", "mean squared, per latent dimension"),
        ("reference", reference, explanation if result.reference is not None else "fewer training latents than codes"),
    ]
    if result.ratio is not None:
        rows.append(("error / reference", f"{result.ratio:.3f}", "1: as good as k-means; below: better; above: worse"))
    if result.shannon_bound is not None:
        rows.append(("Shannon bound", f"{result.shannon_bound:.4g}", "lowest mse that any code of this rate can reach"))
    return rows
