"""Fuzz the tensor readers: each randomly changed file must be read, or be refused with a message that names it.

    python scripts/fuzz_tensors.py [--mutants 2000] [--seed 0] [--only NUMBER]

"Run" means open, scan, split and read the file, and for one in five that open also two training steps and encode. The
exit status is 1 after anything else: another exception, a crash of the interpreter, more than 6 GiB of memory, or a
hang of 30 seconds.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from checks.forked import Outcome, make_parser, run, scratch
from checks.tensor_mutants import mutant

from vqtool import load
from vqtool.config import RunSettings
from vqtool.data import Dataset, Samples, open_dataset
from vqtool.errors import ConfigError, DataError, TrainingError
from vqtool.inference.encode import encode_file
from vqtool.training import train

# Four in this many mutants are also used for training and encoding.
TRAINED = 20
# The largest number of rows that a mutant may have.
MOST_ROWS = 1 << 24


def check(seed: int, number: int) -> Outcome:
    """Open, scan and read a mutant, and train on some of them."""
    suffix, content = mutant(seed, number)
    path = Path(f"mutant-{number}{suffix}")
    path.write_bytes(content)
    try:
        return _used(path, number)
    except (ConfigError, DataError) as error:
        message = str(error)
        fit = path.name in message and all(line.isprintable() for line in message.split("\n"))
        return Outcome("refused" if fit else "broken", message)
    finally:
        path.unlink()


def _used(path: Path, number: int) -> Outcome:
    settings = _settings(path, key=None)
    try:
        dataset = open_dataset(settings.data, seed=0)
    except DataError as error:
        if "several arrays" not in str(error):
            raise
        settings = _settings(path, key="x")
        dataset = open_dataset(settings.data, seed=0)
    _read(dataset)
    if number % TRAINED < 4 and not dataset.spec.classes:
        _train(settings, path)
    return Outcome("run", f"{dataset.spec}")


def _read(dataset: Dataset) -> None:
    for samples in (dataset.training, dataset.validation):
        assert len(samples) <= MOST_ROWS
        _read_all(samples)


def _read_all(samples: Samples) -> None:
    numbers = np.arange(min(len(samples), 1000))[::-1].copy()
    assert len(samples.take(numbers)) == len(numbers)
    for start in range(0, len(samples), 4096):
        assert samples.read(start, min(start + 4096, len(samples))).isfinite().all()


def _train(settings: RunSettings, path: Path) -> None:
    folder = Path("run")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        train(settings, folder)
    except TrainingError:  # values near the limit of float32 may overflow the loss
        return
    key = settings.data.model_dump()["key"]
    encode_file(load(folder), Path("tokens.npy"), str(path), key, overwrite=True)


def _settings(path: Path, key: str | None) -> RunSettings:
    return RunSettings.model_validate(
        {
            "name": "fuzz",
            "data": {"kind": "tensors", "path": str(path), "key": key},
            "model": {"encoder": {"kind": "identity"}, "quantizer": {"kind": "vector", "codebook_size": 4}},
            "training": {"steps": 2, "batch_size": 4, "device": "cpu"},
        }
    )


def main() -> None:
    """Check all mutants."""
    arguments = make_parser(__doc__, mutants=2_000).parse_args()
    with scratch():
        counts = run(
            arguments,
            lambda number: check(arguments.seed, number),
            lambda number: repr(mutant(arguments.seed, number)[1][:1000]),
        )
    print(
        f"{counts.total():,} tensor files: {counts['run']:,} run, {counts['refused']:,} refused by name, "
        f"{counts['broken']:,} broken"
    )
    sys.exit(1 if counts["broken"] else 0)


if __name__ == "__main__":
    main()
