"""Short version of scripts/processes.py: one process and several give equal results and end together."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "processes.py"


@pytest.mark.parametrize(
    ("parts", "share"), [("double traffic", 0.1), ("mutants init-from", 0.1), ("death signal", 0.5)]
)
def test_processes_script_passes(parts: str, share: float) -> None:
    command = [sys.executable, str(SCRIPT), *parts.split(), "--share", str(share)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert " yes " in result.stdout
