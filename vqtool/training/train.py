"""Training as one call: claim a run directory, prepare, train, sum up."""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vqtool.config import RunSettings
from vqtool.data import TensorsSettings
from vqtool.errors import CheckpointError, ConfigError, DataError, Stopped
from vqtool.runs.checkpoint import TrainingState, load_checkpoint
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.distributed import is_rank0, on_rank0, process_group, world_size
from vqtool.runtime.memory import convert_out_of_memory
from vqtool.runtime.signals import deferred_signals
from vqtool.training.projector import write_best_codes
from vqtool.training.setup import TrainingSetup, begin_from, deterministic, set_up
from vqtool.training.trainer import Trainer

# What to do if memory runs out.
ADVICE = "lower training.batch_size first, then the widths in model.encoder or the codebook size in model.quantizer"


def train(
    settings: RunSettings,
    folder: Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_data_change: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train, and return the run's summary.

    Under torchrun every process calls this; the first alone reads and writes the run directory.

    Args:
        folder: the run directory; None: runs/<name>.
        resume: continue the run in the folder; start one if there is none.
        overwrite: remove the run in the folder first.
        allow_data_change: resume even if the data changed since the run started.
        say: called with each line for the user.

    Raises:
        ValueError: both `resume` and `overwrite`.
        ConfigError, DataError: the settings or the data are invalid, or memory or disk space is too small.
        CheckpointError: the folder already contains a run or one that cannot be resumed, or another process uses it.
        TrainingError: a loss or a gradient is not finite, or a severe finding stopped the run.
        Stopped: a signal arrived; the checkpoint is saved.
    """
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other")
    run = RunDirectory(folder or run_folder(settings))
    refuses = not (resume or overwrite)
    with process_group(), deferred_signals(), convert_out_of_memory(ConfigError, ADVICE):
        say = say if is_rank0() else _unheard
        check_apart(run, settings)
        on_rank0(lambda: _refuse(run, refuses))
        try:
            prepared = set_up(settings.model_copy(update={"name": settings.name or run.folder.name}))
        except Stopped as stopped:
            raise Stopped(stopped.signal, f"{stopped} before the first step; no checkpoint was saved") from stopped
        with ExitStack() as claim:
            on_rank0(lambda: claim.enter_context(run.claimed()))
            on_rank0(lambda: _refuse(run, refuses))  # again: another run may have come first
            finished = on_rank0(lambda: _finished(run, prepared, say) if run.exists and resume else None)
            return finished or _train(run, prepared, resume, allow_data_change, say)


def check_apart(run: RunDirectory, settings: RunSettings) -> None:
    """Refuse a run directory that is the folder of the data: what a run writes would be read as data from then on.

    Raises:
        ConfigError: it is.
    """
    data = settings.data
    for path in (data.path, data.validation) if isinstance(data, TensorsSettings) else ():
        if isinstance(path, str) and os.path.realpath(path) == os.path.realpath(run.folder):
            holds = "contains the data" if run.folder.is_dir() else "is the data file"
            raise ConfigError(f"{run.folder}: {holds}, so it cannot be the run directory; use another --run-dir")


def _train(
    run: RunDirectory, prepared: TrainingSetup, resume: bool, allow_data_change: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    begun = on_rank0(lambda: _begun(run, prepared, resume, allow_data_change, say))
    if world_size() > 1:  # as the first has begun
        prepared.model.load_state_dict(on_rank0(lambda: dict(prepared.model.state_dict())))
    trainer = Trainer(prepared, run, None if begun is None else TrainingState.of(begun), say)
    with deterministic():
        trainer.train()
    return on_rank0(lambda: _finish(run, prepared, trainer))


def _begun(
    run: RunDirectory, prepared: TrainingSetup, resume: bool, allow_data_change: bool, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Prepare the run directory; return the fields of the state to resume from, or None for a new run."""
    state = load_checkpoint(run, say) if run.exists and resume else None
    if state is None:
        if resume and run.summary.exists():
            raise CheckpointError(
                f"{run.folder}: the run is finished and has no checkpoint to resume from; use --overwrite to start it "
                "again"
            )
        begin_from(prepared, say)
        run.clear() if run.exists else run.check_free()
    else:
        _check_data(run, state, prepared, allow_data_change, say)
        say(f"{run.folder}: resumed from step {state.step}")
        _tell_extension(run, state, prepared, say)
    run.create(prepared.settings)
    run.summary.unlink(missing_ok=True)
    say(_reading(prepared))
    return None if state is None else state.fields()


def _finish(run: RunDirectory, prepared: TrainingSetup, trainer: Trainer) -> dict[str, Any]:
    write_best_codes(run, prepared.model)
    summary = _summary(prepared, trainer)
    run.write_summary(summary)
    return summary


def _unheard(line: str) -> None:
    """What other processes than the first would say, which says the same."""


def _summary(prepared: TrainingSetup, trainer: Trainer) -> dict[str, Any]:
    return {
        "name": prepared.settings.name,
        "steps": prepared.settings.training.steps,
        "seconds": round(trainer.seconds, 3),
        "best_metric": prepared.settings.training.best_metric,
        "best_step": trainer.best.step,
        "best": trainer.best.metrics,
        "final": trainer.last.metrics,
    }


def _refuse(run: RunDirectory, refuses: bool) -> None:
    if run.exists and refuses:
        raise CheckpointError(
            f"{run.folder}: already contains a run; use --resume to continue it or --overwrite to replace it"
        )


def _finished(run: RunDirectory, prepared: TrainingSetup, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The summary of a run that has all its steps; None if it can continue.

    Raises:
        ConfigError: the run cannot be resumed with these settings.
    """
    before, steps = run.settings(), prepared.settings.training.steps
    _check_same(run, before, prepared.settings)
    summary = run.read_summary()
    if summary and summary["steps"] >= steps:
        say(f"{run.folder}: the run already finished at step {summary['steps']}; nothing to do")
        return summary
    if steps < before.training.steps:
        raise ConfigError(
            f"training.steps: {steps}, but the run in {run.folder} was started with {before.training.steps}; set it to "
            f"{before.training.steps} or more"
        )
    return None


def _check_data(
    run: RunDirectory,
    state: TrainingState,
    prepared: TrainingSetup,
    allow_data_change: bool,
    say: Callable[[str], None],
) -> None:
    if state.data_sha256 == prepared.dataset.sha256:
        return
    if not allow_data_change:
        raise DataError(
            f"{run.folder}: the data changed since the run started (SHA-256 {state.data_sha256[:12]}... then, "
            f"{prepared.dataset.sha256[:12]}... now); use --allow-data-change to continue with the changed data"
        )
    say("data changed since the run started; the best model is chosen among validations on the changed data only")


def _tell_extension(
    run: RunDirectory, state: TrainingState, prepared: TrainingSetup, say: Callable[[str], None]
) -> None:
    """Report why an extended run differs from a run that had the new length from the start."""
    then, now = run.settings().training, prepared.settings.training
    why = []
    if now.schedule == "cosine":
        why.append("training.schedule: cosine depends on training.steps (constant does not)")
    if now.warmup_steps > then.steps:
        why.append("training.warmup_steps was limited to the shorter length")
    if state.early:
        why.append("the codebook was initialised before its sample was complete, as in short runs")
    if now.steps > then.steps and why:
        say(
            f"run extended from {then.steps} to {now.steps} steps; the result differs from {now.steps} steps from the "
            f"start: {'; '.join(why)}"
        )


def _reading(prepared: TrainingSetup) -> str:
    """How the data were read, so that the user sees a wrong guess at once."""
    data = prepared.dataset
    holds = f"{data.spec.classes} classes" if data.spec.classes else f"values, normalize {data.settings.normalize}"
    return (
        f"data: rows {data.spec.row_shape} {data.spec.dtype}, layout {data.spec.layout}, {holds}; "
        f"{len(data.training):,} samples to train, {len(data.validation):,} to validate"
    )


def run_folder(settings: RunSettings) -> Path:
    """runs/<name>."""
    return Path("runs") / (settings.name or "run")


def _check_same(run: RunDirectory, before: RunSettings, settings: RunSettings) -> None:
    changed = [
        f"{key} was changed from {_text(old)} to {_text(new)}"
        for key, old, new in _differences(before.model_dump(), settings.model_dump(), "")
        if not (key in ("training.steps", "training.device") or key.endswith("_every"))
    ]
    if changed:
        raise ConfigError(
            f"{run.folder}: cannot resume: {', '.join(changed)}; change {'it' if len(changed) == 1 else 'them'} back, "
            "or use another --run-dir (only training.steps, training.*_every and training.device may change)"
        )


def _text(value: Any) -> str:
    """A value of a setting as it is written in a config."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _differences(before: Any, after: Any, key: str) -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        names = dict.fromkeys([*before, *after])
        return [
            difference
            for name in names
            for difference in _differences(before.get(name), after.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if before == after else [(key, before, after)]
