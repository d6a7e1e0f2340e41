"""Self-contained HTML reports: the codebook of one run or index file, or a comparison of several."""

from collections.abc import Sequence
from pathlib import Path

from vqtool.errors import DataError, VqtoolError
from vqtool.inspection.inspect_targets import Inspection, OnSkipped, expand_targets, map_targets
from vqtool.runtime.files import atomic_write

__all__ = ["check_report", "write_report"]


def write_report(
    path: Path,
    targets: Sequence[Path],
    data: str | None = None,
    key: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
    on_skipped: OnSkipped | None = None,
) -> list[Inspection]:
    """Write the report page of one run or index file, or the comparison page of several; return what `inspect` returns.

    The same targets give the same bytes.

    Args:
        path: HTML file to write.
        data, key: the dataset to encode; None: the validation split of a single run, or for a comparison no dataset but
            the counts of the best validation of each run.
        overwrite: replace an existing file.
        on_skipped: for a comparison, called with each run of a directory that cannot be used, and the error; None: the
            error is raised.

    Raises:
        CheckpointError: a target is damaged, or is neither a run, a directory of runs nor an index file.
        ConfigError: the settings of a run that is encoded are invalid, or the device is not available.
        DataError: an index file or the data cannot be used, or the page cannot be written.
    """
    check_report(path, overwrite)
    expanded = expand_targets(list(targets))
    # Imported here because the commands without a report do not need matplotlib and jinja2.
    if len(expanded) == 1:
        from vqtool.inspection.report.inputs import collect_inputs
        from vqtool.inspection.report.page import render_report_page

        inputs = collect_inputs(expanded[0], data, key, device)
        page, inspections = render_report_page(inputs), [inputs.inspection]
    else:
        page, inspections = _compare(targets, data, key, device, on_skipped)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return inspections


def check_report(path: Path, overwrite: bool) -> None:
    """Check that a report can be written to `path`.

    Raises:
        DataError: the suffix is not .html or .htm, the parent directory does not exist, or `path` is a directory or an
            existing file without `overwrite`.
    """
    if path.suffix not in (".html", ".htm"):
        raise DataError(f"{path}: the name of a report must end in .html")
    if not path.parent.is_dir():
        raise DataError(f"{path}: directory {path.parent} does not exist; create it")
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name a file")
    if path.exists() and not overwrite:
        raise DataError(f"{path}: already exists; use --overwrite to replace it")


def _compare(
    targets: Sequence[Path], data: str | None, key: str | None, device: str | None, on_skipped: OnSkipped | None
) -> tuple[str, list[Inspection]]:
    from vqtool.inspection.comparison import summarize_target
    from vqtool.inspection.inspect_targets import inspect_target
    from vqtool.inspection.report.page import render_comparison_page
    from vqtool.runs.run_directory import RunDirectory

    notes = []

    def note_skipped(path: Path, error: VqtoolError) -> None:
        assert on_skipped
        notes.append(f"skipped {path}: {error}.")
        on_skipped(path, error)

    inspections = map_targets(
        targets, lambda target: inspect_target(target, data, key, device), note_skipped if on_skipped else None
    )
    runs = [RunDirectory(inspection.target) for inspection in inspections]
    summaries = [summarize_target(inspection, run) for inspection, run in zip(inspections, runs, strict=True)]
    return render_comparison_page(summaries, [run.read_metrics() for run in runs], notes), inspections
