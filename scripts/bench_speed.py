"""How fast vqtool is, beside FAISS, vector-quantize-pytorch, the textbook and a bare loop.

    pip install -e '.[bench]'
    python scripts/bench_speed.py                  all parts
    python scripts/bench_speed.py search start     some of them

Contestants take turns; each line shows the median, the least and the greatest, and the ratio of the medians. One timing
on a shared machine says little, so a run on a busy one is no measurement. The encode part writes files of 4 GiB and
1 GiB.
"""

import os

import faiss
import speed_kernels
import speed_runs
import speed_scalar
import torch
from parts import keep, parser_of
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
}


def main() -> None:
    """Print the tables."""
    parser = parser_of(__doc__, PARTS)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    faiss.omp_set_num_threads(torch.get_num_threads())
    print(
        f"{torch.cpu.get_capabilities()['cpu_name']}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.2f}"
    )
    for name in options.parts:
        table = Table("what", "vqtool", "other", "ratio", "wanted", "reached", title=name, title_justify="left")
        for figure in PARTS[name](options.turns):
            ratio = f"{figure.ratio:.2f}" if figure.ratio == figure.ratio else ""
            reached = "yes" if figure.reached else "no"
            table.add_row(figure.what, figure.ours, figure.other, ratio, figure.wanted, reached)
            keep(options.json, name, figure._asdict())
        Console(width=170).print(table)


if __name__ == "__main__":
    main()
