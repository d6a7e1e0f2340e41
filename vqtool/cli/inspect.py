"""The command `vqtool inspect`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli.output import DeviceOption, JsonOption, KeyOption, OverwriteOption, log, print_json, print_rich
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from vqtool.inspection import Inspection


def inspect(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="TARGET", help="Run directories, directories of runs, or index files.", show_default=False
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="Count codes on this data; default: the best validation pass.")
    ] = None,
    key: KeyOption = None,
    device: DeviceOption = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write an HTML report.", show_default=False)
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Report codebook health: usage, findings, and what to change."""
    if overwrite and not report:
        raise typer.BadParameter("needs --report", param_hint="--overwrite")
    from vqtool.inspection import compare, inspect, render, write_report

    skipped: list[tuple[Path, VqtoolError]] = []

    def on_skipped(target: Path, error: VqtoolError) -> None:
        skipped.append((target, error))
        log(f"vqtool: skipped {target}: {_one_line(error)}")

    if report:
        inspections = write_report(report, targets, data, key, device, overwrite=overwrite, on_skipped=on_skipped)
    else:
        inspections = inspect(targets, data, key, device, on_skipped)
    if as_json:
        fields = _json_fields(targets, inspections, skipped)
        print_json(fields | {"report": str(report)} if report else fields)
        return
    for inspection in inspections:
        print_rich(render(inspection))
    if len(inspections) > 1:
        print_rich(compare(inspections))
    if report:
        print(f"\nreport: {report}")


def _json_fields(
    targets: Sequence[Path], inspections: Sequence["Inspection"], skipped: Sequence[tuple[Path, VqtoolError]]
) -> dict[str, Any]:
    """Return the fields of the JSON output of `inspect`.

    If the only target is a run or an index file, these are its own fields. For several targets, or a directory of runs,
    they are "targets", a list with the fields of each run and index file, and "skipped", a list with the path and the
    error of each run that could not be inspected.
    """
    inspected = [
        {
            "target": inspection.target,
            "tokens": inspection.tokens,
            "collision_rate": inspection.distinct and inspection.distinct.collision_rate,
            "levels": [asdict(level) for level in inspection.levels],
            "findings": [asdict(finding) for finding in inspection.findings],
        }
        for inspection in inspections
    ]
    if len(targets) == 1 and [fields["target"] for fields in inspected] == [str(targets[0])]:
        return inspected[0]
    return {
        "targets": inspected,
        "skipped": [{"target": str(target), "error": _one_line(error)} for target, error in skipped],
    }


def _one_line(error: VqtoolError) -> str:
    return "; ".join(str(error).splitlines())
