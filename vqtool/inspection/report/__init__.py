"""One self-contained page about a codebook, or about several."""

from collections.abc import Sequence
from pathlib import Path

from vqtool.errors import DataError, VqtoolError
from vqtool.inspection.inspect_targets import Inspection
from vqtool.inspection.targets import OnSkipped, expand_targets, for_each_target
from vqtool.runtime.files import atomic_write

__all__ = ["check_report", "write_report"]


def write_report(
    path: Path,
    targets: Sequence[Path],
    data: str | None = None,
    key: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
    skipped: OnSkipped | None = None,
) -> list[Inspection]:
    """Write a page about a run or an index file, or one that compares several; give what `inspect` gives.

    The same targets give the same bytes.

    Args:
        data, key: to look at instead of a run's own validation part.
        skipped: called with each run of a folder that cannot be used, and why; None: that is an error.

    Raises:
        CheckpointError: a target is no run, folder of runs or index file.
        DataError: an index file or the data cannot be used, or the page cannot be written.
    """
    check_report(path, overwrite)
    found = expand_targets(list(targets))
    if len(found) == 1:
        page, inspections = _of_one(found[0], data, key, device)
    else:
        page, inspections = _of_several(targets, data, key, device, skipped)
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")
    return inspections


def check_report(path: Path, overwrite: bool) -> None:
    """Refuse a page that is there, or that has no place.

    Raises:
        DataError: says which.
    """
    if path.suffix not in (".html", ".htm"):
        raise DataError(f"{path}: the name of a report must end in .html")
    if not path.parent.is_dir():
        raise DataError(f"{path}: directory {path.parent} does not exist; create it")
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name a file")
    if path.exists() and not overwrite:
        raise DataError(f"{path}: already exists; use --overwrite to replace it")


def _of_one(target: Path, data: str | None, key: str | None, device: str | None) -> tuple[str, list[Inspection]]:
    # Drawing takes a second to import, and a wrong target is told without it.
    from vqtool.inspection.report.inputs import gather

    material = gather(target, data, key, device)
    from vqtool.inspection.report.page import page_of_one

    return page_of_one(material), [material.inspection]


def _of_several(
    targets: Sequence[Path], data: str | None, key: str | None, device: str | None, skipped: OnSkipped | None
) -> tuple[str, list[Inspection]]:
    from vqtool.inspection.comparison import compared
    from vqtool.inspection.inspect_targets import inspect_one
    from vqtool.runs.run_directory import RunDirectory

    missing = []

    def leave_out(path: Path, error: VqtoolError) -> None:
        assert skipped
        missing.append(f"skipped {path}: {error}.")
        skipped(path, error)

    inspections = for_each_target(
        targets, lambda target: inspect_one(target, data, key, device), leave_out if skipped else None
    )
    from vqtool.inspection.report.page import page_of_several

    runs = [RunDirectory(inspection.target) for inspection in inspections]
    known = [compared(inspection, run) for inspection, run in zip(inspections, runs, strict=True)]
    return page_of_several(known, [run.logged() for run in runs], missing), inspections
