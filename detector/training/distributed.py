"""One process or several under ``torchrun``: the same calls, which are no-ops for one process."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from detector.errors import ConfigError, DetectorError, RankLostError
from detector.system.device import choose_device

# A step takes seconds, or minutes if it compiles or a disk is slow; a rank that keeps the others waiting longer hangs.
# A dead rank is noticed immediately, by its closed connections or by torchrun.
STEP_TIMEOUT = timedelta(minutes=30)
# Work of the main rank alone (scoring, reports) and uneven work (the ranks' parts of an evaluation) may take hours.
MAIN_TIMEOUT = timedelta(days=1)

T = TypeVar("T")

_waiting: dist.ProcessGroup | None = None  # gloo whatever the gradients use: for objects, with MAIN_TIMEOUT
_made: dist.ProcessGroup | None = None  # what start made: the world, or the waiting group beside a caller's world


def is_launched_distributed() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(device_name: str | None = None) -> torch.device:
    """Join the process group if ``torchrun`` started this process; returns the device of this rank.

    A group that the caller has made is used, and :func:`stop` leaves it.
    """
    if not (dist.is_initialized() or is_launched_distributed()):
        return choose_device(device_name)
    device = choose_device(own_gpu(device_name))
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
    global _waiting, _made
    try:
        if not dist.is_initialized():
            dist.init_process_group(
                "nccl" if is_cuda else "gloo", timeout=STEP_TIMEOUT, device_id=device if is_cuda else None
            )
            _made = dist.group.WORLD
        _waiting = dist.new_group(backend="gloo", timeout=MAIN_TIMEOUT)
        _made = _made or _waiting
    except (RuntimeError, ValueError) as error:  # ValueError: no MASTER_ADDR
        reason = str(error).splitlines()[0][:120]
        raise RankLostError(f"rank {os.environ.get('RANK')}: the ranks do not find each other ({reason})") from None
    return device


def own_gpu(name: str | None) -> str | None:
    """The device of this rank if all are given ``name``: of GPUs, each rank takes its own.

    No other GPU is touched, as that would take hundreds of MB of its memory.
    """
    if name == "cpu" or (name is None and not torch.cuda.is_available()):
        return name
    if name not in (None, "cuda"):
        raise ConfigError(f"--device {name}: each rank takes a GPU of its own; use cuda or cpu")
    local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise ConfigError(f"--nproc-per-node: rank {local_rank} has no GPU, there are {num_gpus} here")
    return f"cuda:{local_rank}"


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Turn a collective's error after another rank has ended into one line; the other rank says what happened."""
    try:
        yield
    except RuntimeError as error:
        is_lost = isinstance(error, dist.DistError) or re.search(
            r"gloo|nccl|Connection (closed|reset)", str(error), re.I
        )
        if world_size() == 1 or not is_lost:
            raise
        raise RankLostError(
            f"rank {rank()}: another rank has ended, so this one ends too ({str(error).splitlines()[0][:120]})"
        ) from None


def stop() -> None:
    global _waiting, _made
    if _made is not None:
        dist.destroy_process_group(_made)
    _waiting = _made = None


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


def gather(value: T) -> list[T]:
    """The values of all ranks, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_waiting)
    return values


def gather_on_main(value: T) -> list[T]:
    """The values of all ranks, in rank order, on the main rank; an empty list on the others."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size() if is_main() else []
    dist.gather_object(value, values if is_main() else None, dst=0, group=_waiting)
    return values


def from_main(compute: Callable[[], T]) -> T:
    """Run ``compute`` on the main rank; return its result, or raise its DetectorError, on every rank.

    Use it to read files: the ranks may be machines without a shared folder.
    """
    if not dist.is_initialized():
        return compute()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = compute()
        except DetectorError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, group=_waiting)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def check_same(**states: Any) -> None:
    """Raise ConfigError on all ranks if any starts with other ``states``."""
    by_rank = gather(states)
    for name, expected in by_rank[0].items():
        for rank, own in enumerate(by_rank):
            if own[name] != expected:
                raise ConfigError(
                    f"rank {rank}: its {name} differ from rank 0's ({own[name]}, {expected}); give every rank the same"
                    " config, data and weight files"
                )


def barrier() -> None:
    """Wait for all ranks, also for long work of the main rank alone."""
    if dist.is_initialized():
        dist.barrier(group=_waiting)
