"""What vqtool promises of runs in trouble, put to the test at length.

    python scripts/soak.py                  all parts
    python scripts/soak.py saving disk      some of them
    python scripts/soak.py --share 0.05     each a twentieth as often

Each part prints what was done, what came of it, and whether the promise held; the exit status is 1 where one did not.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import soak_commands
import soak_kills
import soak_mixed
import torch
from promises import Row, put_to_the_test

Part = Callable[[Path, int], Iterable[Row]]
# Each part, and how often it does what it does.
PARTS: dict[str, tuple[Part, int]] = {
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


def _counted(part: Part, times: int) -> Callable[[Path, float], Iterable[Row]]:
    return lambda folder, share: part(folder, max(1, round(share * times)))


if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked process has none of the threads
    put_to_the_test(__doc__, {name: _counted(part, times) for name, (part, times) in PARTS.items()})
