"""One process or many under ``torchrun``: the same calls, no-ops for one."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from detector.errors import ConfigError, RankLostError


def is_launched_distributed() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name, or the first GPU, or the CPU. Raises ConfigError for one that is not here."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"--device {name}: there is no such device here; use cpu, or leave it out") from None
    return device


def start(device_name: str | None = None) -> torch.device:
    """Join the process group if ``torchrun`` started this process; returns the device of this rank."""
    device = choose_device(device_name)
    if is_launched_distributed():
        if device.type == "cuda":
            local_rank, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local_rank >= num_gpus:
                raise ConfigError(f"--nproc-per-node: rank {local_rank} has no GPU, there are {num_gpus} here")
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Turn the error of a collective that another rank has left into one line: the other says what happened."""
    try:
        yield
    except RuntimeError as error:
        is_lost = isinstance(error, dist.DistError) or re.search(
            r"gloo|nccl|Connection (closed|reset)", str(error), re.I
        )
        if world_size() == 1 or not is_lost:
            raise
        raise RankLostError(
            f"rank {rank()}: another rank has ended, and this one with it ({str(error).splitlines()[0][:120]})"
        ) from None


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


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors of every rank with the main rank's."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


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
