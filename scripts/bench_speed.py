"""Measure the speed of vqtool beside FAISS, vector-quantize-pytorch, a textbook implementation and a bare loop.

    pip install -e '.[bench]'
    python scripts/bench_speed.py                  all parts
    python scripts/bench_speed.py search start     selected parts

vqtool and its peers alternate. Each row shows the median [minimum, maximum] and the ratio of the medians, peer /
vqtool: 2 means that vqtool takes half the time. Run it on an idle machine. The encode part writes temporary files of
4 GiB and 1 GiB.
"""

import os

import faiss
import torch
from bench import speed_kernels, speed_runs, speed_scalar, speed_threads
from part_options import append_json, make_parser
from rich.console import Console
from rich.table import Table

PARTS = {
    "search": speed_kernels.search,
    "step": speed_kernels.training_step,
    "memory": speed_kernels.memory,
    "scalar": speed_scalar.scalar,
    "loop": speed_runs.loop,
    "encode": speed_runs.encode,
    "start": speed_runs.start,
    "threads": speed_threads.threads,
}


def main() -> None:
    """Print one table per part."""
    parser = make_parser(__doc__, PARTS)
    parser.add_argument("--turns", type=int, default=7, help="measurements per row; default: 7")
    options = parser.parse_args()
    torch.manual_seed(0)
    faiss.omp_set_num_threads(torch.get_num_threads())
    print(
        f"{torch.cpu.get_capabilities()['cpu_name']}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.2f}"
    )
    for name in options.parts:
        table = Table("case", "vqtool", "peer", "peer's result", "peer / vqtool", title=name, title_justify="left")
        for row in PARTS[name](options.turns):
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            table.add_row(row.case, row.vqtool, row.peer, row.peer_result, ratio)
            append_json(options.json, name, row._asdict())
        Console(width=170).print(table)


if __name__ == "__main__":
    main()
