"""The command `vqtool train`."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli.output import JsonOption, log, print_json, print_line, print_rich, table
from vqtool.runtime.torchrun import rank_info

if TYPE_CHECKING:
    from vqtool.training.dry_run import DryRun


def train(
    config: Annotated[Path, typer.Option(help="Config file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a config key, e.g. training.steps=100; may be repeated."
        ),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run directory; default: runs/<name>.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the run directory, or start one.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the run directory.")] = False,
    allow_data_change: Annotated[
        bool, typer.Option("--allow-data-change", help="With --resume: accept data that changed since the run started.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check config, data and model; estimate memory and time.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Short for --set training.device=...")] = None,
    key: Annotated[str | None, typer.Option(help="Short for --set data.key=...")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a tokenizer as described by a config."""
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite cannot be combined")
    from vqtool import training
    from vqtool.config import load_config

    options = [("training.device", device), ("data.key", key)]
    option_overrides = [f"{name}={json.dumps(value)}" for name, value in options if value is not None]
    settings = load_config(config, [*(overrides or []), *option_overrides])
    is_rank0 = rank_info().rank == 0
    if dry_run:
        if not is_rank0:
            return
        result = training.dry_run(settings, run_dir)
        print_json(asdict(result)) if as_json else print_rich(table(_dry_run_rows(result)))
        return
    folder = run_dir or training.default_run_dir(settings)
    summary = training.train(
        settings, folder, resume=resume, overwrite=overwrite, allow_data_change=allow_data_change, log=log
    )
    if not is_rank0:
        return
    if as_json:
        print_json({"run": str(folder), **summary})
        return
    print_rich(
        table(_summary_rows(summary), ("", f"best (step {summary['best_step']})", f"last (step {summary['steps']})"))
    )
    print_line("")
    print_line(f"run: {folder} ({summary['seconds']:,.0f} s of training); next:")
    for command in ("vqtool encode {} --out tokens.npy", "vqtool inspect {}", "tensorboard --logdir {}"):
        print_line("  " + command.format(shlex.quote(str(folder))))


def _summary_rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    formats = {
        "validation/loss/total": "{:.4g}",
        "validation/loss/reconstruction": "{:.4g}",
        "validation/loss/commitment": "{:.4g}",
        "validation/loss/entropy": "{:.4g}",
        "codebook/usage": "{:.1%}",
        "codebook/perplexity": "{:,.1f}",
        "codebook/dead": "{:,.1f}",  # the mean over levels
        "codebook/collision_rate": "{:.2%}",
    }
    return [
        (tag, *(number_format.format(summary[when][tag]).removesuffix(".0") for when in ("best", "final")))
        for tag, number_format in formats.items()
        if tag in summary["final"]
    ]


def _dry_run_rows(result: "DryRun") -> list[tuple[str, ...]]:
    from vqtool.runtime.progress import format_duration  # imports torch, which --help must not

    spec = result.spec
    kind = f"{spec.classes} classes" if spec.classes else f"values, normalize {result.normalize}"
    times = [f"{result.seconds_per_step:.2g} s a step", f"{result.seconds_per_validation:.2g} s per validation"]
    first_loss = "reconstruction"
    if result.seconds_of_initialisation:
        times.append(f"initialisation about {format_duration(result.seconds_of_initialisation)}")
        first_loss = "reconstruction, not quantized before the initialisation"
    return [
        ("run directory", result.run_dir + (" (contains a run)" if result.exists else "")),
        ("device", result.device),
        ("data", f"rows {spec.row_shape} {spec.dtype}, layout {spec.layout}, {kind}"),
        ("samples", f"{result.training_samples:,} to train, {result.validation_samples:,} to validate"),
        (
            "tokens",
            f"grid {tuple(result.grid)}, codebook sizes {result.codebook_sizes}, codebook dim {result.codebook_dim}",
        ),
        ("bits per sample", f"{result.bits_per_sample:,.1f}"),
        ("parameters", f"{result.parameters:,}"),
        ("length", f"{result.steps:,} steps, {result.epochs:,.1f} epochs"),
        ("time", f"about {format_duration(result.seconds)} ({', '.join(times)})"),
        ("memory", f"about {result.memory_bytes / 1e6:,.0f} MB at most, without memory-mapped data"),
        ("first loss", f"{result.first_loss:.4g} ({first_loss})"),
    ]
