"""`vqtool train`."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli.output import JsonOption, print_json, print_rich, say, table, tell
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

    pairs = [("training.device", device), ("data.key", key)]
    short = [f"{name}={json.dumps(value)}" for name, value in pairs if value is not None]
    settings = load_config(config, [*(overrides or []), *short])
    speaks = rank_info().rank == 0
    if dry_run:
        if not speaks:
            return
        plan = training.dry_run(settings, run_dir)
        print_json(asdict(plan)) if as_json else print_rich(table(_plan_rows(plan)))
        return
    folder = run_dir or training.run_folder(settings)
    summary = training.train(
        settings, folder, resume=resume, overwrite=overwrite, allow_data_change=allow_data_change, say=say
    )
    if not speaks:
        return
    if as_json:
        print_json({"run": str(folder), **summary})
        return
    print_rich(
        table(_summary_rows(summary), ("", f"best (step {summary['best_step']})", f"last (step {summary['steps']})"))
    )
    tell("")
    tell(f"run: {folder} ({summary['seconds']:,.0f} s of training); next:")
    for following in ("vqtool encode {} --out tokens.npy", "vqtool inspect {}", "tensorboard --logdir {}"):
        tell("  " + following.format(shlex.quote(str(folder))))


def _summary_rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    formats = {
        "validation/loss/total": "{:.4g}",
        "validation/loss/reconstruction": "{:.4g}",
        "validation/loss/commitment": "{:.4g}",
        "validation/loss/entropy": "{:.4g}",
        "codebook/usage": "{:.1%}",
        "codebook/perplexity": "{:,.1f}",
        "codebook/dead": "{:,.1f}",  # of several levels, the mean
        "codebook/collision_rate": "{:.2%}",
    }
    return [
        (tag, *(form.format(summary[when][tag]).removesuffix(".0") for when in ("best", "final")))
        for tag, form in formats.items()
        if tag in summary["final"]
    ]


def _plan_rows(plan: "DryRun") -> list[tuple[str, ...]]:
    spec = plan.spec
    kind = f"{spec.classes} classes" if spec.classes else f"values, normalize {plan.normalize}"
    waiting = ", not quantized before the initialisation" if plan.seconds_of_initialisation else ""
    return [
        ("run directory", plan.run_dir + (" (contains a run)" if plan.exists else "")),
        ("device", plan.device),
        ("data", f"rows {spec.row_shape} {spec.dtype}, layout {spec.layout}, {kind}"),
        ("samples", f"{plan.training_samples:,} to train, {plan.validation_samples:,} to validate"),
        ("tokens", f"grid {tuple(plan.grid)}, codebook sizes {plan.codebook_sizes}, codebook dim {plan.codebook_dim}"),
        ("bits per sample", f"{plan.bits_per_sample:,.1f}"),
        ("parameters", f"{plan.parameters:,}"),
        ("length", f"{plan.steps:,} steps, {plan.epochs:,.1f} epochs"),
        ("time", _time(plan)),
        ("memory", f"about {plan.memory_bytes / 1e6:,.0f} MB at most, without memory-mapped data"),
        ("first loss", f"{plan.first_loss:.4g} (reconstruction{waiting})"),
    ]


def _time(plan: "DryRun") -> str:
    from vqtool.runtime.progress import duration

    parts = [f"{plan.seconds_per_step:.2g} s a step", f"{plan.seconds_per_validation:.2g} s per validation"]
    if plan.seconds_of_initialisation:
        parts.append(f"initialisation about {duration(plan.seconds_of_initialisation)}")
    return f"about {duration(plan.seconds)} ({', '.join(parts)})"
