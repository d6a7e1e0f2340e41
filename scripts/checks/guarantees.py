"""Checks of guarantees: one table row per check; the exit status is 1 if a check fails."""

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from part_options import append_json, make_parser
from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
    """One check: its name, the measured result, and whether the guarantee held."""

    check: str
    result: str
    held: bool


def run_checks(doc: str | None, parts: Mapping[str, Callable[[Path, float], Iterable[Row]]]) -> None:
    """Run the parts named on the command line, print a table of their rows, and exit: 1 if a guarantee did not hold.

    Args:
        doc: docstring of the script, for --help.
        parts: for each name, a function of a temporary folder of its own and of --share, the fraction of its full
            number of repetitions to run.
    """
    parser = make_parser(doc, parts)
    parser.add_argument("--share", type=float, default=1.0, help="fraction of the full counts to run; default: 1")
    options = parser.parse_args()
    table = Table("part", "check", "result", "held")
    held = True
    for name in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            for row in parts[name](Path(folder), options.share):
                table.add_row(name, row.check, row.result, "yes" if row.held else "no")
                held &= row.held
                append_json(options.json, name, row._asdict())
    Console(width=170).print(table)
    sys.exit(not held)
