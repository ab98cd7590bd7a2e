"""One process or many under ``torchrun``: the same calls, no-ops for one."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_launched_distributed() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(device_name: str | None = None) -> torch.device:
    """Join the process group if ``torchrun`` started this process; returns the device of this rank."""
    use_cuda = torch.cuda.is_available() if device_name is None else device_name.startswith("cuda")
    if not is_launched_distributed():
        return torch.device(device_name or ("cuda" if use_cuda else "cpu"))
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if use_cuda else "gloo")
    return device


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """``tensor`` summed in place over all ranks."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def gather(value: Any) -> list[Any]:
    """The values of all ranks, in order of rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
