"""Which device to compute on."""

import torch

from vqtool.errors import ConfigError
from vqtool.launcher import place


def resolve_device(name: str) -> torch.device:
    """The device called `name`; auto: cuda, else cpu. Of several GPUs each process of a job takes its own.

    There is no mps: it has no float64, in which codes that are about equally near are told apart.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    name = _own(name)
    available = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name} is not a device; expected auto, cpu, cuda or cuda:1") from error
    if device.type not in available or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        here = ", ".join(available)
        raise ConfigError(
            f"device: {name} is not available on this machine (available: {here}); choose one with --device"
        )
    return device


def _own(name: str) -> str:
    """The GPU that torchrun means this process to take, where none is named."""
    number = place().local_rank
    return f"cuda:{number}" if number is not None and name in ("auto", "cuda") and torch.cuda.is_available() else name
