"""Check the guarantees of vqtool for interrupted runs, full disks and limited memory, at full length.

    python scripts/soak.py                  all parts
    python scripts/soak.py saving disk      selected parts
    python scripts/soak.py --share 0.05     5% of the repetitions of each part

Prints one row per check with its result and whether the guarantee held. The exit status is 1 if one did not hold.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from checks import soak_commands, soak_kills, soak_mixed_stops
from checks.guarantees import Row, run_checks

Part = Callable[[Path, int], Iterable[Row]]
# Each part and its number of repetitions at --share 1.
PARTS: dict[str, tuple[Part, int]] = {
    "saving": (soak_kills.saving, 200),
    "exact": (soak_kills.exact, 50),
    "mixed": (soak_mixed_stops.mixed, 60),
    "encoding": (soak_kills.encoding, 50),
    "parts": (soak_kills.parts, 20),
    "signals": (soak_commands.signals, 40),
    "disk": (soak_commands.disk, 20),
    "memory": (soak_commands.memory, 9),
    "twice": (soak_commands.twice, 6),
}


def _scaled(part: Part, repetitions: int) -> Callable[[Path, float], Iterable[Row]]:
    """Return the part as a function of folder and --share; it repeats at least once."""
    return lambda folder, share: part(folder, max(1, round(share * repetitions)))


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads do not survive a fork
    run_checks(__doc__, {name: _scaled(part, repetitions) for name, (part, repetitions) in PARTS.items()})
