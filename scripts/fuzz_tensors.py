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
from vqtool.data import Samples, open_dataset
from vqtool.errors import ConfigError, DataError, TrainingError
from vqtool.inference.encode import encode_file
from vqtool.training import train

# Of this many consecutive mutants, the first four, one per file format, are also used for training and encoding.
TRAINING_PERIOD = 20
# A mutant that opens with more rows than this is broken: no valid file has so many.
MAX_ROWS = 1 << 24


def check(seed: int, number: int) -> Outcome:
    """Open, scan and read a mutant, and train on some of them; a refusal must name the file and be printable."""
    suffix, content = mutant(seed, number)
    path = Path(f"mutant-{number}{suffix}")
    path.write_bytes(content)
    try:
        return _read_and_train(path, number)
    except (ConfigError, DataError) as error:
        message = str(error)
        is_valid = path.name in message and all(line.isprintable() for line in message.split("\n"))
        return Outcome("refused" if is_valid else "broken", message)
    finally:
        path.unlink()


def _read_and_train(path: Path, number: int) -> Outcome:
    settings = _settings(path, key=None)
    try:
        dataset = open_dataset(settings.data, seed=0)
    except DataError as error:
        if "several arrays" not in str(error):
            raise
        settings = _settings(path, key="x")
        dataset = open_dataset(settings.data, seed=0)
    for samples in (dataset.training, dataset.validation):
        _read_all(samples)
    if number % TRAINING_PERIOD < 4 and not dataset.spec.classes:
        _train(settings, path)
    return Outcome("run", f"{dataset.spec}")


def _read_all(samples: Samples) -> None:
    """Read up to 1,000 samples in reverse order by index, then all in order; all must be finite."""
    assert len(samples) <= MAX_ROWS
    indices = np.arange(min(len(samples), 1000))[::-1].copy()
    assert len(samples.take(indices)) == len(indices)
    for start in range(0, len(samples), 4096):
        assert samples.read(start, min(start + 4096, len(samples))).isfinite().all()


def _train(settings: RunSettings, path: Path) -> None:
    """Train two steps, and encode the file at `path`."""
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
