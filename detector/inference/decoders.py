"""Processes that turn an image's bytes into a sample: what crashes, hangs or kills a decoder costs that image only."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import pickle
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from detector.config.schema import Config
from detector.data.headers import open_header, stored_size
from detector.data.images import decode_image
from detector.data.loading.workers import init_worker
from detector.errors import DataError, DetectorError
from detector.tasks import get_results, get_task

QUALITY = 90  # of a drawing's JPEG


class Reader(NamedTuple):
    """What a decoder's process does; ``name`` is the client's name of an image, and no file is opened."""

    config: Config
    max_pixels: int

    def sample(self, name: str, data: bytes) -> Any:
        """The image as the model wants it; its pixels as an array [H, W, C]: not every tensor can be pickled."""
        sample = get_task(self.config).make_sample(self._decode(name, data), 0, self.config)
        return sample._replace(image=sample.image.permute(1, 2, 0).numpy())

    def draw(self, name: str, data: bytes, prediction: Any, draw_score: float) -> bytes:
        """A JPEG file of the image with what was found in it."""
        drawing = io.BytesIO()
        get_results(self.config.task).draw(self._decode(name, data), prediction, draw_score).save(
            drawing, "JPEG", quality=QUALITY
        )
        return drawing.getvalue()

    def _decode(self, name: str, data: bytes) -> np.ndarray:
        path, model = Path(name), self.config.model
        if not data:
            raise DataError(f"{name}: the image is empty")
        header = None if path.suffix.lower() == ".npy" else open_header(path, io.BytesIO(data))
        if header is not None and np.prod(stored_size(header), dtype=float) > self.max_pixels:
            width, height = stored_size(header)
            raise DataError(
                f"{name}: has {width:,}×{height:,} pixels; this server takes {self.max_pixels:,} in an image"
            )
        return decode_image(path, data, model.in_channels, self.config.data.exif, self.config.data.max_value)


class Decoders:
    """``processes`` of a :class:`Reader`. One that dies is replaced, and its image tried once more."""

    def __init__(self, reader: Reader, processes: int, timeout: float, on_restart: Callable[[], None]) -> None:
        self.reader, self.timeout, self.on_restart = reader, timeout, on_restart
        self._context = multiprocessing.get_context("forkserver")  # fork copies the locks that torch's threads hold
        self._context.set_forkserver_preload([__name__, f"detector.tasks.{reader.config.task}"])
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for _ in range(processes):
            self._idle.put(_Process(self._context, reader))
        self._threads = ThreadPoolExecutor(processes)  # each asks one process and waits

    async def sample(self, name: str, data: bytes) -> Any:
        """The image as the model wants it; raises :class:`detector.errors.DataError`."""
        sample = await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, "sample", name, data)
        return sample._replace(image=torch.from_numpy(sample.image).permute(2, 0, 1))

    async def draw(self, name: str, data: bytes, prediction: Any, draw_score: float) -> bytes:
        """See :meth:`Reader.draw`."""
        ask, loop = self._ask, asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, ask, "draw", name, data, prediction, draw_score)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().kill()

    def _ask(self, method: str, name: str, *arguments: Any) -> Any:
        process = self._idle.get()  # never waits: there are as many threads
        try:
            for _ in range(2):  # the system may kill any process when it is out of memory
                try:
                    return process.ask(method, name, *arguments, timeout=self.timeout)
                except (EOFError, OSError, TimeoutError) as error:
                    process.kill()
                    process = _Process(self._context, self.reader)
                    self.on_restart()
                    if isinstance(error, TimeoutError):
                        raise DataError(f"{name}: took longer than {self.timeout:g} s to decode") from None
            raise DataError(f"{name}: the process that decoded the image died, twice; it may be damaged")
        finally:
            self._idle.put(process)


class _Process:
    """One process, asked over a pipe."""

    def __init__(self, context: Any, reader: Reader) -> None:
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, reader), daemon=True)
        self.process.start()
        other.close()

    def ask(self, *request: Any, timeout: float) -> Any:
        # By pickle itself: multiprocessing would send tensors as shared memory, which dies with its process.
        self.connection.send_bytes(pickle.dumps(request))
        if not self.connection.poll(timeout):
            raise TimeoutError
        answer = pickle.loads(self.connection.recv_bytes())
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Connection, reader: Reader) -> None:
    init_worker(0)
    while True:
        method, name, *arguments = pickle.loads(connection.recv_bytes())
        try:
            answer = getattr(reader, method)(name, *arguments)
        except DetectorError as error:
            answer = error
        except Exception as error:  # what damaged images do to a decoder is not all foreseen
            answer = DataError(f"{name}: cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        connection.send_bytes(pickle.dumps(answer))
