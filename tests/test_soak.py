"""The soak, at a small share: what `scripts/soak.sh` does at length."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "soak.py"


@pytest.mark.parametrize(("part", "share"), [("saving", 0.03), ("exact", 0.06), ("mixed", 0.1), ("encoding", 0.06)])
def test_the_promise_holds(part: str, share: float) -> None:
    done = subprocess.run([sys.executable, SCRIPT, part, "--share", str(share)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " yes " in done.stdout
