"""What commands print, and the options that several of them share."""

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
    """One JSON object on standard output; what is no number becomes null, what is no text an escape."""
    print(json.dumps(_plain(value), allow_nan=False))


def print_rich(value: "RenderableType") -> None:
    """Tables and text on standard output."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=120)  # a file or a pipe has no width to keep to
    console.print(value)


def tell(line: str) -> None:
    """A line on standard output."""
    print(escape_control(line))


def say(line: str) -> None:
    """A line on standard error, above any progress bar."""
    from vqtool.runtime.progress import Bar

    Bar.write(escape_control(line), file=sys.stderr)


def table(rows: list[tuple[str, ...]], header: tuple[str, ...] = ()) -> "RenderableType":
    """Plain columns, under a header if there is one."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, show_header=bool(header), padding=(0, 2, 0, 0))
    for name in header or rows[0]:
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*(Text(escape_control(cell)) for cell in row))
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return escape_surrogates(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
