"""The loader's processes: one that raises or is killed ends the run with the name of its image, and never hangs it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from detector.data.loading.sampler import Key
from detector.errors import DataError, DetectorError
from detector.system.processes import begin_child


def load(
    data: Any, batches: Iterable[list[Key]], workers: int, collate: Callable[[list[Any]], Any], pin_memory: bool = False
) -> Iterator[Any]:
    """What ``collate`` returns for the samples of each list of keys; ``data`` has samples by key and ``file(index)``.

    The exception of a sample reaches ``collate`` as a :class:`detector.errors.DataError`. Raises one within seconds
    where a worker was killed.
    """
    samples = _Watched(data, workers)
    loader = DataLoader(
        samples,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=init_worker,
        # Its own: the loader would draw from the one of dropout once per process, so a resumed run would differ.
        generator=torch.Generator(),
    )
    handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if workers and signal.getsignal(signal.SIGCHLD) is not handler:
        # torch's handler raises a worker's death wherever the main process is, even in the middle of an optimizer step.
        # Without it, the death is noticed while waiting for the next batch, at most five seconds later.
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:  # the last two: a worker died while sending a batch
            raise samples.explain(error) from None
        yield batch


class _Watched(Dataset[Any]):
    """Samples, with a record of the one that each worker reads; exceptions become values."""

    def __init__(self, data: Any, workers: int) -> None:
        self.data = data
        # Process id and sample index, in shared memory: they can still be read when the worker was killed.
        self.now = torch.zeros(workers, 2, dtype=torch.int64).share_memory_()

    def __getitem__(self, key: Key) -> Any:
        worker = get_worker_info()
        if worker is not None:
            self.now[worker.id, 0], self.now[worker.id, 1] = os.getpid(), key[1]
        try:
            return self.data[key]
        except DetectorError as error:
            return error
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            line = f"{Path(frame.filename).name}:{frame.lineno}"
            return DataError(f"{self.data.file(key[1])}: cannot be loaded: {reason} ({line})")

    def explain(self, error: Exception) -> Exception:
        """The error of a worker's death, or ``error`` itself if none has died."""
        alive = {child.pid for child in multiprocessing.active_children()}
        dead = [(pid, index) for pid, index in self.now.tolist() if pid and pid not in alive]
        if not dead:
            return error
        files = ", ".join(str(self.data.file(index)) for _, index in dead)
        return DataError(
            f"{files}: the loader's process {dead[0][0]} was killed while it read this image or after it; if the"
            " system was out of memory, use fewer data.workers or smaller images"
        )


def _say_unless_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """No traceback where the main process ended while a worker was sending to it: the main process reports why."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def init_worker(worker: int) -> None:
    """What every loader process does first."""
    begin_child()
    sys.excepthook = _say_unless_left
    # Workers are the parallelism; threads inside each of them only fight for the cores.
    cv2.setNumThreads(0)
    # OpenCV logs every broken file without its name; our errors have it.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
