"""Which device to compute on."""

import json
import re

import torch

from vqtool.errors import ConfigError
from vqtool.runtime.torchrun import rank_info


def check_device_name(name: str) -> str:
    """Return the name of a device that this version supports; there may be none on this machine.

    Raises:
        ValueError: any other name. mps has no float64, in which nearly equal distances are compared.
    """
    if re.fullmatch(r"mps(:\d+)?", name):
        raise ValueError(f"{name} is not supported, because it has no float64; use cpu")
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9]\d?|1[01]\d|12[0-7]))?", name):  # torch counts GPUs in 8 bits
        raise ValueError(f"expected auto, cpu, cuda or a numbered GPU such as cuda:1 (got {json.dumps(name)})")
    return name


def resolve_device(name: str, key: str = "training.device") -> torch.device:
    """The device called `name`; auto: cuda, else cpu. Of several GPUs each process of a job takes its own.

    Args:
        key: the setting or option that holds the name, for messages.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    try:
        name = _own(check_device_name(name))
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error
    available = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    if name == "auto":
        return torch.device(available[0])
    device = torch.device(name)
    if device.type not in available or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        here = ", ".join(available)
        raise ConfigError(
            f"{key}: {name} is not available on this machine (available: {here}); choose one with --device"
        )
    return device


def _own(name: str) -> str:
    """The GPU that torchrun means this process to take, where none is named."""
    number = rank_info().local_rank
    return f"cuda:{number}" if number is not None and name in ("auto", "cuda") and torch.cuda.is_available() else name
