"""What vqtool promises of runs in trouble, put to the test at length.

    python scripts/soak.py                  all parts
    python scripts/soak.py saving disk      some of them
    python scripts/soak.py --share 0.05     each a twentieth as often

Each part prints what was done, what came of it, and whether the promise held; the exit status is 1 where one did not.
"""

import sys
import tempfile
from pathlib import Path

import soak_commands
import soak_kills
import soak_mixed
import torch
from parts import keep, parser_of
from rich.console import Console
from rich.table import Table

# Each part, and how often it does what it does.
PARTS = {
    "saving": (soak_kills.saving, 200),
    "exact": (soak_kills.exact, 50),
    "mixed": (soak_mixed.mixed, 60),
    "encoding": (soak_kills.encoding, 50),
    "parts": (soak_kills.parts, 20),
    "signals": (soak_commands.signals, 40),
    "disk": (soak_commands.disk, 20),
    "memory": (soak_commands.memory, 9),
    "twice": (soak_commands.twice, 6),
}


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__, PARTS)
    parser.add_argument("--share", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has none of the threads
    table = Table("part", "what", "came to", "held")
    held = True
    for name in options.parts:
        part, times = PARTS[name]
        with tempfile.TemporaryDirectory() as folder:
            for row in part(Path(folder), max(1, round(options.share * times))):
                table.add_row(name, row.what, row.figure, "yes" if row.held else "NO")
                held &= row.held
                keep(options.json, name, row._asdict())
    Console(width=170).print(table)
    sys.exit(not held)


if __name__ == "__main__":
    main()
