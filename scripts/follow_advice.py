"""Start from settings that collapse and apply the advice of the findings, one change per run, until none is left.

    python scripts/follow_advice.py [FOLDER] [--steps 300] [--rounds 12]

The first run uses `update: entropy_only`, `init: random` and no dead-code reset on patches of photographs
(scripts/make_tensors.py). Prints a Markdown table.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from make_tensors import patches

from vqtool.config import load_config
from vqtool.inspection import Inspection, inspect
from vqtool.inspection.finding import Change
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train

BARE = {
    "kind": "vector",
    "codebook_size": 256,
    "codebook_dim": "auto",
    "init": {"kind": "random"},
    "update": {"kind": "entropy_only"},
    "dead_code_reset": None,
    "temperature": 1.0,
}


def bare(data: Path, steps: int) -> dict[str, Any]:
    """Return the config of the first round, for the array at `data`."""
    return {
        "data": {"kind": "tensors", "path": str(data)},
        "model": {"encoder": {"kind": "conv2d", "width": 32, "downsamples": 2, "res_blocks": 1}, "quantizer": BARE},
        "loss": {"entropy": 0.1},
        "training": {"steps": steps, "batch_size": 32, "learning_rate": 0.002, "validate_every": max(1, steps // 6)},
    }


def train_and_inspect(config: Path, changes: list[Change], folder: Path) -> Inspection:
    """Train with these changes, each as an argument of --set, and inspect the run."""
    train(load_config(config, [f"{change.key}={change.value}" for change in changes]), folder)
    (inspection,) = inspect([folder])
    return inspection


def next_change(inspection: Inspection, applied: list[Change]) -> Change | None:
    """Return the first advised change that is not applied yet, the most severe finding first; None if there is none."""
    applied_pairs = {(change.key, change.value) for change in applied}
    advised = [change for finding in inspection.findings for change in finding.changes]
    return next((change for change in advised if (change.key, change.value) not in applied_pairs), None)


def row(number: int, changes: list[Change], inspection: Inspection) -> str:
    """Return the Markdown row of a round, with the last of its changes."""
    (level,) = inspection.levels
    loss = RunDirectory(Path(inspection.target)).read_summary()
    reconstruction = loss["best"]["validation/loss/reconstruction"] if loss else float("nan")
    change = f"`{changes[-1].key}={changes[-1].value}`" if changes else "none"
    names = ", ".join(finding.name for finding in inspection.findings) or "none"
    return f"| {number} | {change} | {level.usage:.0%} | {level.perplexity:.1f} | {reconstruction:.4f} | {names} |"


def follow(folder: Path, steps: int, rounds: int) -> None:
    """Train, inspect and change settings until no finding advises a new change, for at most `rounds` runs."""
    np.save(folder / "patches.npy", patches())
    config = folder / "bare.yaml"
    config.write_text(yaml.safe_dump(bare(folder / "patches.npy", steps)))
    print("| round | change | usage | perplexity of 256 | reconstruction | findings |\n|---|---|---|---|---|---|")
    changes: list[Change] = []
    for number in range(rounds):
        inspection = train_and_inspect(config, changes, folder / f"round-{number}")
        print(row(number, changes, inspection), flush=True)
        change = next_change(inspection, changes)
        if change is None:
            return
        changes.append(change)


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="folder for the runs; default: a temporary folder")
    parser.add_argument("--steps", type=int, default=300, help="training steps per round; default: 300")
    parser.add_argument("--rounds", type=int, default=12, help="maximum number of rounds; default: 12")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        follow(folder, options.steps, options.rounds)


if __name__ == "__main__":
    main()
