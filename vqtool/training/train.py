"""Training as one call: claim a run directory, prepare, train, sum up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqtool.config import RunSettings
from vqtool.errors import CheckpointError, ConfigError
from vqtool.run import Run
from vqtool.training.checkpoint import load_checkpoint
from vqtool.training.prepare import Prepared, deterministic, prepare
from vqtool.training.trainer import Trainer


def train(
    settings: RunSettings,
    folder: Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train, and return the run's summary.

    Args:
        folder: the run directory; None: runs/<name>.
        resume: go on where the folder's run stands; where there is none, start.
        overwrite: remove the folder's run first.
        say: called with each line for the user.

    Raises:
        ValueError: both `resume` and `overwrite`.
        ConfigError, DataError: the settings or the data are wrong.
        CheckpointError: the folder holds a run, or one that cannot go on.
        TrainingError: a loss or a gradient is not finite.
        Stopped: a signal came.
    """
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other")
    run = Run(folder or run_folder(settings))
    if run.exists and not (resume or overwrite):
        raise CheckpointError(f"{run.folder}: holds a run already; --resume goes on with it, --overwrite replaces it")
    prepared = prepare(settings.model_copy(update={"name": settings.name or run.folder.name}))
    state = None
    if run.exists and resume:
        before = run.settings()
        _check_same(run, before, prepared.settings)
        summary = run.read_summary()
        if summary and summary["steps"] >= settings.training.steps:
            say(f"{run.folder}: the run is finished, at step {summary['steps']}; nothing to do")
            return summary
        _check_extends(run, before, prepared.settings)
        state = load_checkpoint(run)
    if run.exists and state is None:
        run.clear()
    elif not run.exists:
        run.check_free()
    run.create(prepared.settings)
    run.summary.unlink(missing_ok=True)
    say(_reading(prepared))
    trainer = Trainer(prepared, run, state, say)
    with deterministic():
        trainer.train()
    summary = {
        "name": prepared.settings.name,
        "steps": settings.training.steps,
        "seconds": round(trainer.seconds, 3),
        "best_metric": settings.training.best_metric,
        "best_step": trainer.best.step,
        "best": trainer.best.metrics,
        "final": trainer.last.metrics,
    }
    run.write_summary(summary)
    return summary


def _reading(prepared: Prepared) -> str:
    """How the data were read, so that a wrong guess is seen at once."""
    data = prepared.dataset
    holds = f"{data.spec.classes} classes" if data.spec.classes else f"values, normalize {data.settings.normalize}"
    return (
        f"rows {data.spec.row_shape} {data.spec.dtype}, layout {data.spec.layout}, {holds}; "
        f"{len(data.training):,} to train on, {len(data.validation):,} to validate on"
    )


def run_folder(settings: RunSettings) -> Path:
    """runs/<name>."""
    return Path("runs") / (settings.name or "run")


def _check_same(run: Run, before: RunSettings, settings: RunSettings) -> None:
    changed = [
        f"{key} ({old!r} in the run, {new!r} now)"
        for key, old, new in _differences(before.model_dump(), settings.model_dump(), "")
        if not (key in ("training.steps", "training.device") or key.endswith("_every"))
    ]
    if changed:
        raise ConfigError(
            f"{run.folder}: cannot go on with other settings: {', '.join(changed)}. Only training.steps, *_every and "
            "the device may change; train into another --run-dir instead"
        )


def _check_extends(run: Run, before: RunSettings, settings: RunSettings) -> None:
    then, now = before.training.steps, settings.training.steps
    if now < then:
        raise ConfigError(f"training.steps: {now}, but {run.folder} was begun for {then}; a run can only be extended")


def _differences(before: Any, after: Any, key: str) -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        names = dict.fromkeys([*before, *after])
        return [
            difference
            for name in names
            for difference in _differences(before.get(name), after.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if before == after else [(key, before, after)]
