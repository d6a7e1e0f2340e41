"""What processes say to each other in a step, in bytes; and how much faster two are than one."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from process_jobs import job, part_of
from promises import Row

SCRIPT = str(Path(__file__).with_name("process_cases.py"))


def formula(codes: int, dim: int) -> int:
    """The bytes of a step beyond DDP's own gradients: one level of K codes in D dimensions, by EMA with revival.

    Numbers are float32, but for hits, which are int64. The counts (K) and sums (K, D) of EMA; the hits (K) of revival;
    and, each there and back, as the backward pass sums their gradients: the soft assignments (K) and entropies of the
    samples, the sum of squares of commitment, and the sum of the reconstruction loss.
    """
    return 4 * codes * (dim + 1) + 8 * codes + 2 * 4 * (codes + 1) + 2 * 4 + 2 * 4


def traffic(folder: Path, share: float) -> Iterator[Row]:
    """Bytes of a step, counted where torch.distributed is called."""
    for codes, dim in part_of(((64, 8), (1024, 16), (4096, 64)), share):
        out = folder / "bytes.json"
        command = [*job(2), SCRIPT, "--traffic", str(codes), str(dim), "--to", str(out)]
        subprocess.run(command, check=True)
        counted, expected = json.loads(out.read_text()), formula(codes, dim)
        yield Row(
            f"K = {codes}, D = {dim}: bytes of a step", f"{counted:,}; by formula {expected:,}", counted == expected
        )


_IMAGES: dict[str, Any] = {
    "data": {"kind": "synthetic", "samples": 2000, "source": {"kind": "textures"}},
    "model": {
        "encoder": {"kind": "conv2d", "width": 64, "halvings": 2},
        "quantizer": {"kind": "vector", "codebook_size": 512, "codebook_dim": 16, "start": {"kind": "random"}},
    },
    "loss": {"entropy": 0.1},
    "training": {"steps": 60, "batch_size": 64, "log_every": 10, "validate_every": 60, "device": "cpu"},
}


def scaling(folder: Path, share: float) -> Iterator[Row]:
    """Samples a second, two processes of one thread beside one of two threads, three turns: reported, not judged."""
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
    figure = f"{two:,.0f} and {one:,.0f} samples/s: {two / one:.2f} times"
    yield Row("two processes on two cores, one process of two threads", figure, True)
