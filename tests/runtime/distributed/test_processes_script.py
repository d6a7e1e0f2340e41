"""One process and several give the same answer, and end together: a short version of `scripts/processes.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "processes.py"


@pytest.mark.parametrize(
    ("parts", "share"), [("double traffic", 0.1), ("mutants init-from", 0.1), ("death signal", 0.5)]
)
def test_the_promise_holds(parts: str, share: float) -> None:
    command = [sys.executable, str(SCRIPT), *parts.split(), "--share", str(share)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert " yes " in done.stdout
