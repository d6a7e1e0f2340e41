"""Communication volume of a training step, and throughput of two processes."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from checks.guarantees import Row
from checks.process_jobs import first_share, job

SCRIPT = str(Path(__file__).with_name("process_cases.py"))


def formula(codes: int, dim: int) -> int:
    """Return the bytes per step beyond DDP's gradients, for one EMA level of K codes in D dimensions with reset.

    Values are float32, hits int64. EMA: counts (K) and sums (K, D). Dead-code reset: hits (K). Forward and backward:
    soft assignments (K) and sample entropies, the sum of squares of the commitment loss, and the sum of the
    reconstruction loss.
    """
    return 4 * codes * (dim + 1) + 8 * codes + 2 * 4 * (codes + 1) + 2 * 4 + 2 * 4


def traffic(folder: Path, share: float) -> Iterator[Row]:
    """Count the bytes of a step in the calls of torch.distributed, and compare them with the formula."""
    for codes, dim in first_share(((64, 8), (1024, 16), (4096, 64)), share):
        out = folder / "bytes.json"
        command = [*job(2), SCRIPT, "--traffic", str(codes), str(dim), "--to", str(out)]
        subprocess.run(command, check=True)
        counted, expected = json.loads(out.read_text()), formula(codes, dim)
        result = f"{counted:,} counted, {expected:,} by formula"
        yield Row(f"bytes per step, K = {codes}, D = {dim}", result, counted == expected)


_IMAGES: dict[str, Any] = {
    "data": {"kind": "synthetic", "samples": 2000, "source": {"kind": "textures"}},
    "model": {
        "encoder": {"kind": "conv2d", "width": 64, "downsamples": 2},
        "quantizer": {"kind": "vector", "codebook_size": 512, "codebook_dim": 16, "init": {"kind": "random"}},
    },
    "loss": {"entropy": 0.1},
    "training": {"steps": 60, "batch_size": 64, "log_every": 10, "validate_every": 60, "device": "cpu"},
}


def scaling(folder: Path, share: float) -> Iterator[Row]:
    """Compare the throughput of two processes with one thread each and of one with two threads; it cannot fail."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(_IMAGES))
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(3):
        for size in (1, 2):
            run = folder / f"run-{size}-{turn}"
            command = [*job(size), "-m", "vqtool", "train", "--config", str(config), "--run-dir", str(run)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(2 // size)}
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            speeds[size].append(median(line["throughput/samples_per_second"] for line in lines[2:]))
    one, two = median(speeds[1]), median(speeds[2])
    result = f"{two:,.0f} and {one:,.0f} samples/s, ratio {two / one:.2f} (no limit)"
    yield Row("throughput of 2 processes with 1 thread, and of 1 process with 2 threads", result, True)
