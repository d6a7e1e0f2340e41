"""Which process this is, and of how many; and by which group tensors travel."""

import torch.distributed as dist
from torch import Tensor

# Gloo, for tensors on the CPU, whatever carries those of the device.
_host: list["dist.ProcessGroup"] = []


def world_size() -> int:
    """How many processes there are; 1 where torch.distributed is not begun."""
    return dist.get_world_size() if _begun() else 1


def rank() -> int:
    """The number of this process, counted from 0."""
    return dist.get_rank() if _begun() else 0


def is_rank0() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def group_for(tensor: Tensor) -> "dist.ProcessGroup | None":
    """The group to communicate a tensor by; None: the default one."""
    return _host[-1] if _host and tensor.device.type == "cpu" else None


def set_host_group(group: "dist.ProcessGroup | None") -> None:
    """Name the group for tensors on the CPU; None: none any more."""
    _host[:] = [] if group is None else [group]


def _begun() -> bool:
    return dist.is_available() and dist.is_initialized()
