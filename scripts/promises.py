"""Promises put to the test: each a row of a table, and the exit status is 1 where one did not hold."""

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from parts import keep, parser_of
from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
    """One promise: what was done, what came of it, and whether it held."""

    what: str
    figure: str
    held: bool


def put_to_the_test(doc: str | None, parts: Mapping[str, Callable[[Path, float], Iterable[Row]]]) -> None:
    """Run the parts that the command line names, each in a folder of its own and at the share that it says."""
    parser = parser_of(doc, parts)
    parser.add_argument("--share", type=float, default=1.0)
    options = parser.parse_args()
    table = Table("part", "what", "came to", "held")
    held = True
    for name in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            for row in parts[name](Path(folder), options.share):
                table.add_row(name, row.what, row.figure, "yes" if row.held else "NO")
                held &= row.held
                keep(options.json, name, row._asdict())
    Console(width=170).print(table)
    sys.exit(not held)
