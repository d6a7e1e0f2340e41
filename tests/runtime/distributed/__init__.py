"""Real processes for tests: each begins torch.distributed, does some work, and tells what came of it."""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def in_processes(size: int, work: Callable[[], Any]) -> list[Any]:
    """What `work`, a function of a module, returns in each of so many processes: tensors, numbers, texts, and lists
    and dicts of them."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_begun, (size, folder, work), nprocs=size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(size)]


def _begun(rank: int, size: int, folder: str, work: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/store", patience, world_size=size, rank=rank)
    torch.save(work(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
