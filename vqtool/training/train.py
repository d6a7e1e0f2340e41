"""Train in one call: set up, lock the run directory, train, write the summary."""

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
from vqtool.training.setup import TrainingSetup, deterministic, load_init_from, set_up
from vqtool.training.tensorboard import write_projector
from vqtool.training.trainer import Trainer

Log = Callable[[str], None]
OUT_OF_MEMORY_ADVICE = (
    "lower training.batch_size first, then the widths in model.encoder or the codebook size in model.quantizer"
)


def train(
    settings: RunSettings,
    run_dir: Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_data_change: bool = False,
    log: Log = lambda line: None,
) -> dict[str, Any]:
    """Train, and return the summary of the run, which summary.json also contains.

    Under torchrun every process calls this function; only rank 0 reads and writes the run directory.

    Args:
        settings: settings of the run.
        run_dir: the run directory; None: `default_run_dir`.
        resume: continue the run in `run_dir` at its last checkpoint; start one if there is none. A run that already
            has `training.steps` steps is not trained; its summary is returned.
        overwrite: remove the run in `run_dir`, if there is one, once settings and data are checked.
        allow_data_change: resume even if the data changed since the run started.
        log: called on rank 0 with each line for the user, without its line ending.

    Returns:
        `name`, `steps`, `seconds` of training, `best_metric`, `best_step`, and the metrics by tag of the best and of
        the last validation, `best` and `final`.

    Raises:
        ValueError: both `resume` and `overwrite`.
        ConfigError, DataError: the settings or the data are invalid, they differ from those of the run to resume, or
            memory or disk space is too small.
        CheckpointError: `run_dir` already contains a run, its checkpoints are damaged, another process uses it, or
            `training.init_from` has no usable model.
        TrainingError: a loss, a gradient or a validation metric is not finite, a severe finding stopped the run, or
            another process of the job ended.
        Stopped: a stop signal was received; once training has started, a checkpoint is saved first.
    """
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other")
    run = RunDirectory(run_dir or default_run_dir(settings))
    with process_group(), deferred_signals(), convert_out_of_memory(ConfigError, OUT_OF_MEMORY_ADVICE):
        log = log if is_rank0() else lambda line: None
        check_not_data_path(run, settings)
        on_rank0(lambda: _check_no_run(run, resume or overwrite))
        try:
            setup = set_up(settings.model_copy(update={"name": settings.name or run.folder.name}))
        except Stopped as stopped:
            raise Stopped(stopped.signal, f"{stopped} before the first step; no checkpoint was saved") from stopped
        with ExitStack() as lock:
            on_rank0(lambda: lock.enter_context(run.locked()))
            on_rank0(lambda: _check_no_run(run, resume or overwrite))  # another process may have started one meanwhile
            finished = on_rank0(lambda: _finished_summary(run, setup, log) if run.exists and resume else None)
            return finished or _train(run, setup, resume, allow_data_change, log)


def default_run_dir(settings: RunSettings) -> Path:
    """Return runs/<name>; runs/run if the settings have no name."""
    return Path("runs") / (settings.name or "run")


def check_not_data_path(run: RunDirectory, settings: RunSettings) -> None:
    """Check that the run directory is neither `data.path` nor `data.validation`: its files would be read as data.

    Raises:
        ConfigError: it is one of them, directly or through a link.
    """
    data = settings.data
    for path in (data.path, data.validation) if isinstance(data, TensorsSettings) else ():
        if isinstance(path, str) and os.path.realpath(path) == os.path.realpath(run.folder):
            role = "contains the data" if run.folder.is_dir() else "is the data file"
            raise ConfigError(f"{run.folder}: {role}, so it cannot be the run directory; use another --run-dir")


def _check_no_run(run: RunDirectory, may_exist: bool) -> None:
    if run.exists and not may_exist:
        raise CheckpointError(
            f"{run.folder}: already contains a run; use --resume to continue it or --overwrite to replace it"
        )


def _train(run: RunDirectory, setup: TrainingSetup, resume: bool, allow_data_change: bool, log: Log) -> dict[str, Any]:
    """Train in the locked run directory, from its checkpoint or from step 0; return the summary."""
    state = on_rank0(lambda: _prepare_run_dir(run, setup, resume, allow_data_change, log))
    if world_size() > 1:  # rank 0 may have loaded `training.init_from`
        setup.model.load_state_dict(on_rank0(lambda: dict(setup.model.state_dict())))
    trainer = Trainer(setup, run, None if state is None else TrainingState.from_dict(state), log)
    with deterministic():
        trainer.train()
    return on_rank0(lambda: _write_results(run, setup, trainer))


def _prepare_run_dir(
    run: RunDirectory, setup: TrainingSetup, resume: bool, allow_data_change: bool, log: Log
) -> dict[str, Any] | None:
    """Load the last checkpoint, or clear the directory and load `training.init_from`; then write config.yaml.

    A run without a complete checkpoint starts again.

    Returns:
        `TrainingState.to_dict` of the checkpoint; None: training starts at step 0.
    """
    state = load_checkpoint(run, log) if run.exists and resume else None
    if state is None:
        if resume and run.summary.exists():
            raise CheckpointError(
                f"{run.folder}: the run is finished and has no checkpoint to resume from; use --overwrite to start it "
                "again"
            )
        load_init_from(setup, log)
        run.clear() if run.exists else run.check_no_other_files()
    else:
        _check_same_data(run, state, setup, allow_data_change, log)
        log(f"{run.folder}: resumed from step {state.step}")
        _log_extension(run, state, setup, log)
    run.create(setup.settings)
    run.summary.unlink(missing_ok=True)
    spec, data = setup.dataset.spec, setup.dataset
    content = f"{spec.classes} classes" if spec.classes else f"values, normalize {data.settings.normalize}"
    log(  # shows at once if the layout was guessed wrongly
        f"data: rows {spec.row_shape} {spec.dtype}, layout {spec.layout}, {content}; "
        f"{len(data.training):,} samples to train, {len(data.validation):,} to validate"
    )
    return None if state is None else state.to_dict()


def _write_results(run: RunDirectory, setup: TrainingSetup, trainer: Trainer) -> dict[str, Any]:
    """Write the results of a completed training; return the summary.

    Writes the learned codes of the best model for TensorBoard's projector, then summary.json, which marks the run as
    finished. Loads the weights of the best model into `setup.model`.
    """
    write_projector(run, setup.model)
    training = setup.settings.training
    summary = {
        "name": setup.settings.name,
        "steps": training.steps,
        "seconds": round(trainer.seconds, 3),
        "best_metric": training.best_metric,
        "best_step": trainer.best_validation.step,
        "best": trainer.best_validation.metrics,
        "final": trainer.last_validation.metrics,
    }
    run.write_summary(summary)
    return summary


def _finished_summary(run: RunDirectory, setup: TrainingSetup, log: Log) -> dict[str, Any] | None:
    """Return the summary of a finished run that has at least `training.steps` steps; None if the run can continue.

    Raises:
        ConfigError: the run cannot be resumed with these settings.
        CheckpointError: the summary is damaged.
    """
    run_settings, steps = run.settings(), setup.settings.training.steps
    _check_same_settings(run, run_settings, setup.settings)
    summary = run.read_summary()
    if summary and summary["steps"] >= steps:
        log(f"{run.folder}: the run already finished at step {summary['steps']}; nothing to do")
        return summary
    run_steps = run_settings.training.steps
    if steps < run_steps:
        raise ConfigError(
            f"training.steps: {steps}, but the run in {run.folder} was started with {run_steps}; set it to {run_steps} "
            "or more"
        )
    return None


def _check_same_settings(run: RunDirectory, run_settings: RunSettings, settings: RunSettings) -> None:
    """Raise a ConfigError if settings differ other than training.steps, training.*_every and training.device."""
    changes = [
        f"{key} was changed from {_yaml_value(old)} to {_yaml_value(new)}"
        for key, old, new in _changed_values(run_settings.model_dump(), settings.model_dump(), "")
        if not (key in ("training.steps", "training.device") or key.endswith("_every"))
    ]
    if changes:
        raise ConfigError(
            f"{run.folder}: cannot resume: {', '.join(changes)}; change {'it' if len(changes) == 1 else 'them'} back, "
            "or use another --run-dir (only training.steps, training.*_every and training.device may change)"
        )


def _changed_values(old: Any, new: Any, key: str) -> list[tuple[str, Any, Any]]:
    """Return dotted key, old value and new value of each difference between nested dicts; a missing value is None.

    Args:
        key: dotted key of `old` and `new`; empty at the top.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for name in dict.fromkeys([*old, *new])
            for change in _changed_values(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if old == new else [(key, old, new)]


def _yaml_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _check_same_data(
    run: RunDirectory, state: TrainingState, setup: TrainingSetup, allow_data_change: bool, log: Log
) -> None:
    """Raise a DataError if the data changed since the run started; only log it with `allow_data_change`."""
    if state.data_sha256 == setup.dataset.sha256:
        return
    if not allow_data_change:
        raise DataError(
            f"{run.folder}: the data changed since the run started (SHA-256 {state.data_sha256[:12]}... then, "
            f"{setup.dataset.sha256[:12]}... now); use --allow-data-change to continue with the changed data"
        )
    log("data changed since the run started; the best model is chosen among validations on the changed data only")


def _log_extension(run: RunDirectory, state: TrainingState, setup: TrainingSetup, log: Log) -> None:
    """Log why a run extended to more steps differs from one that had them from the start, if it does."""
    old, new = run.settings().training, setup.settings.training
    reasons = []
    if new.schedule == "cosine":
        reasons.append("training.schedule: cosine depends on training.steps (constant does not)")
    if new.warmup_steps > old.steps:
        reasons.append("training.warmup_steps was limited to the shorter length")
    if state.init_was_early:
        reasons.append("the codebook was initialised before its sample was complete, as in short runs")
    if new.steps > old.steps and reasons:
        log(
            f"run extended from {old.steps} to {new.steps} steps; the result differs from {new.steps} steps from the "
            f"start: {'; '.join(reasons)}"
        )
