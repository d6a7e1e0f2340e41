"""Fuzz the config loader: each randomly changed recipe must run, or be refused with a message that names the key.

    python scripts/fuzz_configs.py [--mutants 10000] [--seed 0] [--only NUMBER]

"Run" means the checks of --dry-run, and for one mutant in ten two training steps. The exit status is 1 after anything
else: another exception, a message without a key, a crash, or a hang of 30 seconds. Large sizes are reduced after
validation, unless they are so large that they must be refused.
"""

import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from checks.config_mutants import mutant
from checks.forked import Outcome, make_parser, run, scratch
from checks.mutant_values import SMALL

from vqtool.config import RunSettings, load_config
from vqtool.errors import ConfigError, DataError, TrainingError
from vqtool.training import dry_run, train

CONFIG = Path("mutant.yaml")
# One in this many mutants is also trained, if it passes the dry run.
TRAINING_PERIOD = 10
# Data sets and batches with a size in bytes between these limits are valid but slow, and are reduced.
MIN_SLOW_BYTES, MAX_SLOW_BYTES = 1 << 22, 1 << 36


def check(seed: int, number: int) -> Outcome:
    """Load and dry-run a mutant, and train some of them. A TrainingError counts as "run"."""
    CONFIG.write_bytes(mutant(seed, number))
    settings = None
    try:
        settings = affordable(load_config(CONFIG))
        dry_run(settings)
        if number % TRAINING_PERIOD == 0:
            _train(settings)
    except (ConfigError, DataError) as error:
        return _refused(str(error), settings)
    except TrainingError as error:  # for example a learning rate of 1e30
        return Outcome("run", str(error))
    return Outcome("run")


def _train(settings: RunSettings) -> None:
    """Train at most two steps, with all logs and checkpoints."""
    short = {"steps": min(2, settings.training.steps), "log_every": 1, "validate_every": 2, "checkpoint_every": 2}
    training = settings.training.model_copy(update=short)
    folder = Path("run")
    shutil.rmtree(folder, ignore_errors=True)
    train(settings.model_copy(update={"training": training}), folder)


def _refused(message: str, settings: RunSettings | None) -> Outcome:
    """Return "refused" if the message names a key or a data path and is safe to print, otherwise "broken".

    Args:
        message: text of the ConfigError or DataError.
        settings: settings of the mutant; None: the config could not be loaded, so the message must start with its path.
    """
    if not all(line.isprintable() for line in message.split("\n")):
        return Outcome("broken", f"unprintable message: {message!r}")
    if len(message) > 20_000:
        return Outcome("broken", f"message of {len(message):,} characters: {message[:200]}")
    if settings is None:
        return Outcome("refused" if message.startswith(str(CONFIG)) else "broken", message)
    paths = [path for path in (getattr(settings.data, "path", ""), settings.data.validation) if isinstance(path, str)]
    is_named = _KEY.search(message) or any(path and path in message for path in paths)
    return Outcome("refused" if is_named else "broken", message)


_KEY = re.compile(r"^(name|seed|data|model|device): |\b(data|model|loss|training)\.[a-z_]+", re.MULTILINE)


def affordable(settings: RunSettings) -> RunSettings:
    """Return the settings with sizes reduced that are valid but slow.

    Data and batches are reduced if they take between `MIN_SLOW_BYTES` and `MAX_SLOW_BYTES`, the sizes of the model
    always; larger data must be refused.
    """
    values = settings.model_dump()
    data, training, model = values["data"], values["training"], values["model"]
    sizes = [size for size in data.get("source", {}).values() if type(size) is int]
    sample_bytes = math.prod(sizes) * 32
    if any(
        MIN_SLOW_BYTES < samples * sample_bytes < MAX_SLOW_BYTES
        for samples in (data.get("samples", 1), training["batch_size"])
    ):
        _shrink(data, limit=64)
        _shrink(training, limit=64)
    _shrink(model, limit=64 if _layers(model) > 100 else 4096)
    return RunSettings.model_validate(values)


def _layers(values: dict[str, Any]) -> int:
    """Return the largest number of layers, blocks or groups in a model block."""
    inner = [_layers(value) for value in values.values() if isinstance(value, dict)]
    return max([*inner, *(values.get(key) or 0 for key in ("res_blocks", "layers", "depth", "groups"))])


def _shrink(values: dict[str, Any], limit: int) -> None:
    """Set sizes above `limit` to those of `SMALL`, in place."""
    for key, value in values.items():
        if isinstance(value, dict):
            _shrink(value, limit)
        elif type(value) is int and limit < value and key in SMALL:
            values[key] = SMALL[key]


def _write_arrays() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((48, 8), dtype=np.float32)
    np.save("values.npy", vectors)
    np.save("classes.npy", random.integers(0, 5, (48, 8, 8)))
    np.savez("several.npz", a=vectors, b=np.ones((3, 3)))


def main() -> None:
    """Check all mutants."""
    arguments = make_parser(__doc__, mutants=10_000).parse_args()
    with scratch():
        _write_arrays()
        counts = run(
            arguments,
            lambda number: check(arguments.seed, number),
            lambda number: mutant(arguments.seed, number)[:4000].decode(errors="backslashreplace"),
        )
    print(
        f"{counts.total():,} configs: {counts['run']:,} run, {counts['refused']:,} refused by key, "
        f"{counts['broken']:,} broken"
    )
    sys.exit(1 if counts["broken"] else 0)


if __name__ == "__main__":
    main()
