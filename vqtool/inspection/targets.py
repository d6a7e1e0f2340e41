"""From what the user names to runs and index files, of which one that is damaged does not hide the others."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from vqtool.errors import CheckpointError, ConfigError, DataError, VqtoolError
from vqtool.runs.run_directory import RunDirectory

Found = TypeVar("Found")
# Is told of a run of a folder that cannot be used, and why.
OnSkipped = Callable[[Path, VqtoolError], None]


def expand_targets(targets: Sequence[Path]) -> list[Path]:
    """Runs and index files, with the runs of a folder in its place.

    Raises:
        CheckpointError: a target is none of these.
    """
    return [found for target in targets for found in _expand(target)]


def for_each_target(targets: Sequence[Path], look: Callable[[Path], Found], skipped: OnSkipped | None) -> list[Found]:
    """What `look` gives of each run and index file.

    Args:
        skipped: None: a run of a folder that cannot be used is an error, just as one that was named.

    Raises:
        CheckpointError, ConfigError, DataError: as `look` does; also where nothing else is left.
    """
    found, faults = [], []
    for target in targets:
        for path in _expand(target):
            try:
                found.append(look(path))
            except (CheckpointError, ConfigError, DataError) as error:
                if path == target or skipped is None:
                    raise
                faults.append((path, error))
    if faults and not found:
        raise faults[0][1]
    for path, fault in faults:
        assert skipped
        skipped(path, fault)
    return found


def _expand(target: Path) -> list[Path]:
    if target.is_file() or RunDirectory(target).exists:
        return [target]
    runs = sorted(path.parent for path in target.glob("*/config.yaml") if RunDirectory(path.parent).exists)
    if not runs:
        raise CheckpointError(
            f"{target}: is neither a run, nor a directory of runs, nor an index file"
            if target.exists()
            else f"{target}: does not exist"
        )
    return runs
