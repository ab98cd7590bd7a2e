"""``train.batch_size: auto``: the largest batch whose training step fits into a GPU's memory."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from detector.config.schema import Config
from detector.data.loading.collate import collate
from detector.errors import DetectorError, GpuMemoryError
from detector.models import Model
from detector.models.precision import autocast
from detector.structures import Batch
from detector.tasks import Data, Task
from detector.training import distributed
from detector.training.loop import LESS_MEMORY, TrainingState

KEPT_FREE = 0.1  # of the batch that fits: sizes, objects and the allocator's gaps differ from step to step
MOST = 1024  # images per rank and part


def choose_batch_size(
    config: Config, task: Task, build: Callable[[], Model], data: Data, device: torch.device
) -> Config:
    """The config with the largest ``train.batch_size`` that fits on every rank, a margin kept.

    ``build`` makes the model that is tried, and thrown away, with batches of the largest input.
    """
    sample = data[0, 0]
    if isinstance(sample, DetectorError):
        raise sample
    own = largest_that_fits(lambda count: fits(config, task, build, make_batch(config, task, sample, count), device))
    if own == 0:
        raise GpuMemoryError(f"train.batch_size: auto: a step of one image does not fit; {LESS_MEMORY}")
    part = max(1, int(min(distributed.gather(own)) * (1 - KEPT_FREE)))
    return with_batch_size(config, part * distributed.world_size() * config.train.accumulate)


def with_batch_size(config: Config, batch_size: int) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"batch_size": batch_size})})


def largest_that_fits(fit: Callable[[int], bool]) -> int:
    """The largest number up to ``MOST`` that fits, where any smaller does too: by doubling, then by halving the gap."""
    good, bad = 0, 1
    while bad <= MOST and fit(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, MOST + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fit(middle) else (good, middle)
    return good


def make_batch(config: Config, task: Task, sample: object, count: int) -> Batch:
    """``count`` times the targets of a sample, with images of the largest input."""
    batch = collate([sample] * count)
    assert isinstance(batch, Batch)
    size = task.largest_input(config)
    images = batch.images.new_zeros(count, *size, batch.images.shape[1]).permute(0, 3, 1, 2)
    return batch._replace(images=images, sizes=torch.tensor([size] * count))


def fits(config: Config, task: Task, build: Callable[[], Model], batch: Batch, device: torch.device) -> bool:
    """Whether two steps with ``batch`` have enough memory; the second has the optimizer's state from the start."""
    try:
        config = with_batch_size(config, len(batch.ids))
        model = build().place(device).train()
        state = TrainingState.begin(model, config.train, len(batch.ids), device)
        moved = batch.to(device)
        for _ in range(2):
            take_step(config, task, state, moved)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        model = state = moved = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def take_step(config: Config, task: Task, state: TrainingState, batch: Batch) -> None:
    """A training step on its own, to see what it costs."""
    with autocast(config.train.precision, batch.images.device):
        output = state.model(batch.images, batch.sizes)
    losses = task.loss(output, batch.targets, config.model)
    sum(losses.parts.values()).backward()
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
