"""Check device names, and resolve a name to a torch.device of this machine."""

import json
import re

import torch

from vqtool.errors import ConfigError
from vqtool.runtime.torchrun import rank_info


def check_device_name(name: str) -> str:
    """Return `name` if it is auto, cpu, cuda or one of cuda:0 to cuda:127. The device need not exist on this machine.

    Raises:
        ValueError: any other name. mps has no float64, in which nearly equal distances are compared.
    """
    if re.fullmatch(r"mps(:\d+)?", name):
        raise ValueError(f"{name} is not supported, because it has no float64; use cpu")
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9]\d?|1[01]\d|12[0-7]))?", name):  # torch.device has 8-bit indices
        raise ValueError(f"expected auto, cpu, cuda or a numbered GPU such as cuda:1 (got {json.dumps(name)})")
    return name


def resolve_device(name: str, key: str = "training.device") -> torch.device:
    """Return the device of a name. auto is cuda if available, else cpu.

    In a job started by torchrun, each process of a machine gets its own GPU: auto and cuda become cuda:LOCAL_RANK.

    Args:
        name: auto, cpu, cuda or a numbered GPU such as cuda:1.
        key: setting or option that contains the name, for error messages.

    Raises:
        ConfigError: the name is invalid, or this machine does not have the device.
    """
    try:
        check_device_name(name)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error
    available = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    local_rank = rank_info().local_rank
    if local_rank is not None and name in ("auto", "cuda") and "cuda" in available:
        name = f"cuda:{local_rank}"
    if name == "auto":
        return torch.device(available[0])
    device = torch.device(name)
    if device.type not in available or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            f"{key}: {name} is not available on this machine (available: {', '.join(available)}); choose one with "
            "--device"
        )
    return device
