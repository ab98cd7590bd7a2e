"""Samples of many requests to batches of one padded shape, which one thread predicts one after the other.

While a batch is predicted, others wait and become the next ones. So batches are small where little is asked, without a
delay, and full where much is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from detector.data.transforms.resize import padded_shape

Predict = Callable[[list[Any], "float | None"], list[Any]]


class Timed(NamedTuple):
    """A prediction, and how long its sample waited and its batch took, in seconds."""

    prediction: Any
    waited: float
    took: float


class _Job(NamedTuple):
    sample: Any
    score: float | None
    since: float
    future: asyncio.Future[Timed]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Jobs of one kind share a batch: what is found in an image does not depend on the others."""
        return padded_shape(self.sample), self.sample.image.dtype, self.score


class Batcher:
    """``predict`` takes samples and a score threshold; ``on_batch`` is told the size of each batch.

    All methods are called in one event loop.
    """

    def __init__(self, predict: Predict, most: int, on_batch: Callable[[int], None]) -> None:
        self._predict, self.most, self.on_batch = predict, most, on_batch
        self._waiting: list[_Job] = []
        self._runner: asyncio.Task[None] | None = None
        # Denormals are flushed per thread.
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_flush_denormal, initargs=(True,))

    async def predict(self, sample: Any, score: float | None = None) -> Timed:
        """What is in a sample. When the caller is cancelled, its sample is not predicted."""
        job = _Job(sample, score, time.perf_counter(), asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return await job.future

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    async def _run(self) -> None:
        while batch := self._next_batch():
            self.on_batch(len(batch))
            started = time.perf_counter()
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._predict_batch, batch)
            took = time.perf_counter() - started
            for job, result in zip(batch, results, strict=True):
                if job.future.done():  # cancelled
                    continue
                if isinstance(result, Exception):
                    job.future.set_exception(result)
                else:
                    job.future.set_result(Timed(result, started - job.since, took))
        self._runner = None

    def _next_batch(self) -> list[_Job]:
        """The oldest job and those of its kind, in order."""
        waiting = [job for job in self._waiting if not job.future.done()]
        batch = [job for job in waiting if job.kind == waiting[0].kind][: self.most]
        taken = set(map(id, batch))
        self._waiting = [job for job in waiting if id(job) not in taken]
        return batch

    def _predict_batch(self, batch: list[_Job]) -> list[Any]:
        """A prediction or an error for each job; where the batch fails, each job is tried alone."""
        try:
            return self._predict([job.sample for job in batch], batch[0].score)
        except Exception as error:  # a server must outlive it
            return [error] if len(batch) == 1 else [self._predict_batch([job])[0] for job in batch]
