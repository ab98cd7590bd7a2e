"""Which side limits a training: the loaders, or the device."""

from __future__ import annotations

import math
import time
from collections import deque
from itertools import islice
from statistics import median
from typing import NamedTuple

import torch

from detector.analysis.summary import finish
from detector.config.schema import Config
from detector.data.loading.collate import load_batches
from detector.models import build_model
from detector.structures import Batch
from detector.system.device import explain_memory
from detector.tasks import get_task
from detector.training.batch_size import take_step
from detector.training.loop import LESS_MEMORY, TrainingState, train_batches

LOADED = 4  # batches of each loader process that are timed, after its first
STEPS = 3  # that are timed, after a first one
LARGEST_ON_CPU = 4  # images of the step: more take minutes and are no faster for each


class Rates(NamedTuple):
    """Images per second of a training's two sides, which work at the same time."""

    loading: float
    computing: float
    workers: int
    step_images: int  # of the step that was timed

    @property
    def limit(self) -> str:
        return "loaders" if self.loading < self.computing else "device"

    def describe(self) -> str:
        loaders = f"{self.workers} loader process{'es' * (self.workers != 1)} (data.workers)"
        line = (
            f"training: {loaders} read {self.loading:.1f} images/s, the device computes {self.computing:.1f} in steps"
            f" of {self.step_images}: the {self.limit} limit{'s' * (self.limit == 'device')}"
        )
        if self.limit == "loaders" and self.workers:
            line += f"; {math.ceil(self.workers * self.computing / self.loading)} processes on as many cores would not"
        return line


def measure_rates(config: Config, device: torch.device) -> Rates:
    """The rates of the config's own training data and of its training step.

    Raises :class:`detector.errors.DetectorError` where the data cannot be read.
    """
    task = get_task(config)
    data = task.open_split(config, "train")
    workers = config.data.workers
    first, timed = max(1, workers), LOADED * max(1, workers)
    batches = load_batches(data, train_batches(config, data, 0, first + timed), workers)
    # A batch of each process is on its way before and after the time that is taken.
    *_, batch = islice(batches, first)
    started = time.perf_counter()
    deque(batches, maxlen=0)
    loading = timed * len(batch.ids) / (time.perf_counter() - started)
    own = batch if device.type == "cuda" else batch.first(LARGEST_ON_CPU)
    seconds = _step_seconds(config, len(data.categories), own, device)
    return Rates(loading, len(own.ids) / seconds, workers, len(own.ids))


def _step_seconds(config: Config, num_classes: int, batch: Batch, device: torch.device) -> float:
    """The median time of a training step, the batch on the device."""
    task = get_task(config)
    model = build_model(config.model, num_classes).place(device).train()
    state = TrainingState.begin(model, config.train, len(batch.ids), device)
    moved = batch.to(device)
    seconds = []
    for _ in range(1 + STEPS):
        started = time.perf_counter()
        with explain_memory(batch.describe(), LESS_MEMORY):
            take_step(config, task, state, moved)
        finish(device)
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])
