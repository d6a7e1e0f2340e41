"""`vqtool inspect`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli.output import DeviceOption, JsonOption, KeyOption, OverwriteOption, print_json, print_rich

if TYPE_CHECKING:
    from vqtool.inspection import Inspection


def inspect(
    targets: Annotated[
        list[Path],
        typer.Argument(metavar="TARGET...", help="Runs, folders of runs, or index files.", show_default=False),
    ],
    data: Annotated[
        str | None, typer.Option(help="Count codes on this data; left out, on the best validation pass.")
    ] = None,
    key: KeyOption = None,
    device: DeviceOption = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page to look at, too.", show_default=False)
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show how a codebook is used: is it healthy?"""
    if overwrite and not report:
        raise typer.BadParameter("it replaces a --report, and there is none", param_hint="--overwrite")
    from vqtool.inspection import compare, inspect, render, write_report

    if report:
        found = write_report(report, targets, data, key, device, overwrite=overwrite)
    else:
        found = inspect(targets, data, key, device)
    if as_json:
        fields = [_fields(inspection) for inspection in found]
        alone = [inspection.target for inspection in found] == [str(target) for target in targets] and len(found) == 1
        written = {"report": str(report)} if report else {}
        print_json((fields[0] if alone else {"targets": fields}) | written)
        return
    for inspection in found:
        print_rich(render(inspection))
    if len(found) > 1:
        print_rich(compare(found))
    if report:
        print(f"\n{report}: the page, to open in a browser")


def _fields(inspection: "Inspection") -> dict[str, Any]:
    return {
        "target": inspection.target,
        "tokens": inspection.tokens,
        "collision_rate": inspection.distinct and inspection.distinct.collision_rate,
        "levels": [asdict(level) for level in inspection.levels],
        "findings": [asdict(finding) for finding in inspection.findings],
    }
