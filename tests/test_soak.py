"""Short version of scripts/soak.py: runs and files survive kills and stops."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "soak.py"


@pytest.mark.parametrize(("part", "share"), [("saving", 0.03), ("exact", 0.06), ("mixed", 0.1), ("encoding", 0.06)])
def test_guarantees_hold(part: str, share: float) -> None:
    result = subprocess.run([sys.executable, SCRIPT, part, "--share", str(share)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " yes " in result.stdout
