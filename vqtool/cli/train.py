"""`vqtool train`."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli.output import JsonOption, print_json, print_rich, say, table, tell
from vqtool.launcher import place

if TYPE_CHECKING:
    from vqtool.training.plan import Plan


def train(
    config: Annotated[Path, typer.Option(help="The config, a YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a dotted key of the config; may be repeated."),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run goes; left out, runs/<name>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is there, if any.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    allow_data_change: Annotated[
        bool, typer.Option("--allow-data-change", help="Go on although the data have changed since the run began.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, train nothing.")] = False,
    device: Annotated[str | None, typer.Option(help="Short for --set training.device=...")] = None,
    key: Annotated[str | None, typer.Option(help="Short for --set data.key=...")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a tokenizer on the data that a config names."""
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    from vqtool.config import load_config
    from vqtool.training import plan_run, run_folder, train

    pairs = [("training.device", device), ("data.key", key)]
    short = [f"{name}={json.dumps(value)}" for name, value in pairs if value is not None]
    settings = load_config(config, [*(overrides or []), *short])
    speaks = place().rank == 0
    if dry_run:
        if not speaks:
            return
        plan = plan_run(settings, run_dir)
        print_json(asdict(plan)) if as_json else print_rich(table(_plan_rows(plan)))
        return
    folder = run_dir or run_folder(settings)
    summary = train(settings, folder, resume=resume, overwrite=overwrite, allow_data_change=allow_data_change, say=say)
    if not speaks:
        return
    if as_json:
        print_json({"run": str(folder), **summary})
        return
    print_rich(
        table(_summary_rows(summary), ("", f"best (step {summary['best_step']})", f"last (step {summary['steps']})"))
    )
    tell("")
    tell(f"The run is in {folder}, {summary['seconds']:,.0f} s of training. Next:")
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


def _plan_rows(plan: "Plan") -> list[tuple[str, ...]]:
    spec = plan.spec
    kind = f"{spec.classes} classes" if spec.classes else f"values, normalize {plan.normalize}"
    return [
        ("run directory", plan.run_dir + (" (holds a run already)" if plan.exists else "")),
        ("device", plan.device),
        ("rows", f"{spec.row_shape} {spec.dtype}, layout {spec.layout}, {kind}"),
        ("samples", f"{plan.training_samples:,} to train, {plan.validation_samples:,} to validate"),
        ("codes", f"grid {tuple(plan.grid)} from {plan.codebook_sizes} codes of {plan.codebook_dim} dimensions"),
        ("bits a sample", f"{plan.bits_per_sample:,.1f}"),
        ("parameters", f"{plan.parameters:,}"),
        ("length", f"{plan.steps:,} steps, {plan.epochs:,.1f} epochs"),
        ("memory", f"about {plan.memory_bytes / 1e6:,.0f} MB at most, mapped data aside"),
        ("first loss", f"{plan.first_loss:.4g}"),
    ]
