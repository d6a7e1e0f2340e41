"""Arguments and options that several commands share, and functions that print."""

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.runtime.terminal import escape_control, escape_surrogates

if TYPE_CHECKING:
    from rich.console import RenderableType

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)]
DataArgument = Annotated[
    str | None,
    typer.Argument(metavar="DATA", help="Tensor file, directory of tensor files, or glob.", show_default=False),
]
KeyOption = Annotated[str | None, typer.Option(help="Name of the array, for files that hold several.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda or a numbered GPU such as cuda:1; default: the device of the run.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")]


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output. NaN and infinity become null, lone surrogates become escapes."""
    print(json.dumps(_to_json_value(value), allow_nan=False))


def print_rich(renderable: "RenderableType") -> None:
    """Print a Rich table or text on standard output; if that is not a terminal, COLUMNS or 120 columns wide."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=120)
    console.print(renderable)


def print_line(line: str) -> None:
    """Print a line on standard output, with control characters escaped."""
    print(escape_control(line))


def log(line: str) -> None:
    """Print a line on standard error, above any progress bar, with control characters escaped."""
    from vqtool.runtime.progress import ProgressBar

    ProgressBar.write(escape_control(line), file=sys.stderr)


def table(rows: list[tuple[str, ...]], header: tuple[str, ...] = ()) -> "RenderableType":
    """Return a Rich table without borders. Control characters in cells are escaped.

    Args:
        rows: cells of each row, one per column; must not be empty if there is no header.
        header: names of the columns; empty: no header.
    """
    from rich.table import Table
    from rich.text import Text

    rich_table = Table(box=None, show_header=bool(header), padding=(0, 2, 0, 0))
    for name in header or rows[0]:
        rich_table.add_column(name, overflow="fold")
    for row in rows:
        rich_table.add_row(*(Text(escape_control(cell)) for cell in row))
    return rich_table


def _to_json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _to_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_value(item) for item in value]
    if isinstance(value, str):
        return escape_surrogates(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
