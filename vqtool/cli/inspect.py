"""`vqtool inspect`."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli.output import DeviceOption, JsonOption, KeyOption, OverwriteOption, print_json, print_rich, say
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

    faults: list[tuple[Path, VqtoolError]] = []
    skipped = partial(_leave_out, faults)
    if report:
        found = write_report(report, targets, data, key, device, overwrite=overwrite, skipped=skipped)
    else:
        found = inspect(targets, data, key, device, skipped)
    if as_json:
        alone = [inspection.target for inspection in found] == [str(target) for target in targets] and len(found) == 1
        written = {"report": str(report)} if report else {}
        print_json((_fields(found[0]) if alone else _of_several(found, faults)) | written)
        return
    for inspection in found:
        print_rich(render(inspection))
    if len(found) > 1:
        print_rich(compare(found))
    if report:
        print(f"\nreport: {report}")


def _leave_out(faults: list[tuple[Path, VqtoolError]], target: Path, error: VqtoolError) -> None:
    faults.append((target, error))
    say(f"vqtool: skipped {target}: {_line(error)}")


def _of_several(found: Sequence["Inspection"], faults: Sequence[tuple[Path, VqtoolError]]) -> dict[str, Any]:
    return {
        "targets": [_fields(inspection) for inspection in found],
        "skipped": [{"target": str(target), "error": _line(error)} for target, error in faults],
    }


def _line(error: VqtoolError) -> str:
    return "; ".join(str(error).splitlines())


def _fields(inspection: "Inspection") -> dict[str, Any]:
    return {
        "target": inspection.target,
        "tokens": inspection.tokens,
        "collision_rate": inspection.distinct and inspection.distinct.collision_rate,
        "levels": [asdict(level) for level in inspection.levels],
        "findings": [asdict(finding) for finding in inspection.findings],
    }
