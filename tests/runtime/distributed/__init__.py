"""Run a function on several ranks, each a process with torch.distributed initialized."""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def run_on_ranks(world_size: int, function: Callable[[], Any]) -> list[Any]:
    """Call a module-level function on every rank of a gloo group; return the results by rank.

    The results are sent by torch.save: tensors, numbers, strings, lists and dicts.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_run_rank, (world_size, folder, function), nprocs=world_size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _run_rank(rank: int, world_size: int, folder: str, function: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/store", timeout, world_size=world_size, rank=rank)
    torch.save(function(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
