"""Time of `vqtool train` by how idle OpenMP threads wait, alone and beside another busy process."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from bench.timing import Measurement, compare_timings

CONFIGS = Path(__file__).parents[2] / "configs"
# Environment variables of each policy. vqtool's command line sets GOMP_SPINCOUNT=10000 unless the user sets a policy.
# 300,000 is the default of GNU OpenMP.
POLICIES = {
    "GOMP_SPINCOUNT=300000": {"GOMP_SPINCOUNT": "300000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
# Recipe and number of steps.
RUNS = (("vectors", 150), ("quickstart", 60))


def threads(turns: int) -> Iterator[Measurement]:
    """Time `vqtool train` with its own policy and with others, alone and beside a process that keeps a core busy."""
    for is_busy in (False, True):
        for name, steps in RUNS:
            seconds_by_policy: dict[str, list[float]] = {policy: [] for policy in ("shipped", *POLICIES)}
            with _busy_process() if is_busy else nullcontext():
                for _ in range(turns):
                    for policy, seconds in seconds_by_policy.items():
                        seconds.append(_train(name, steps, POLICIES.get(policy, {})))
            for policy in POLICIES:
                load = "beside one busy process" if is_busy else "alone"
                yield compare_timings(
                    f"{name}.yaml, {steps} steps, {load}",
                    seconds_by_policy["shipped"],
                    policy,
                    seconds_by_policy[policy],
                )


def _train(name: str, steps: int, policy: dict[str, str]) -> float:
    """Return the seconds of `vqtool train`, import included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vqtool", "train", "--config", str(CONFIGS / f"{name}.yaml")]
        changes = ["--set", f"training.steps={steps}", "--run-dir", f"{folder}/run"]
        start = time.perf_counter()
        subprocess.run([*command, *changes], check=True, capture_output=True, env={**os.environ, **policy})
        return time.perf_counter() - start


@contextmanager
def _busy_process() -> Iterator[None]:
    """Keep one core busy within the context."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()
