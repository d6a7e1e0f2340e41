"""Tensor files, changed at random: each works, or is refused by a message that names the file.

    python scripts/fuzz_tensors.py [--mutants 2000] [--seed 0] [--only NUMBER]

"Works" is to be opened, scanned, split, read whole and picked from, and for some of them to be trained on for two steps
and encoded. Exits 1 if there was anything else: another exception, a crash of the interpreter, memory beyond bounds,
or nothing for half a minute.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from children import Outcome, parser_of, run, scratch
from tensor_mutants import mutant

from vqtool import load
from vqtool.config import RunSettings
from vqtool.data import Dataset, Samples, open_dataset
from vqtool.errors import ConfigError, DataError, TrainingError
from vqtool.training import train
from vqtool.transcode import encode_file

# Every so many of those that open are trained on and encoded, too.
TRAINED = 20
# A file of less than this many bytes is not to become more rows than this.
MOST_ROWS = 1 << 24


def check(seed: int, number: int) -> Outcome:
    """Open, scan and read a mutant, and perhaps train on it."""
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
    except TrainingError:  # values near the end of float32 may well be too much for a loss
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
    """Check them all."""
    arguments = parser_of(__doc__, mutants=2_000).parse_args()
    with scratch():
        counts = run(
            arguments,
            lambda number: check(arguments.seed, number),
            lambda number: repr(mutant(arguments.seed, number)[1][:1000]),
        )
    by_name = "all of them by name" if not counts["broken"] else f"{counts['broken']:,} broke the promise"
    print(f"{counts.total():,} tensor files: {counts['run']:,} run, {counts['refused']:,} refused, {by_name}")
    sys.exit(1 if counts["broken"] else 0)


if __name__ == "__main__":
    main()
