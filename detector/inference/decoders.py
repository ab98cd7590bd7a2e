"""Processes that decode images: what crashes, hangs or kills a decoder costs that image only. They import no torch."""

from __future__ import annotations

import asyncio
import contextlib
import io
import multiprocessing
import os
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np

from detector.data.headers import open_header, stored_size
from detector.data.images import ARRAY_SUFFIX, decode_image
from detector.data.inputs import Reading
from detector.errors import DataError, DetectorError
from detector.system.processes import begin_child

Made = TypeVar("Made")

STARTS = 5  # times that starting a process is tried


class Decode(NamedTuple):
    """What the processes do: the bytes of an image to pixels [H, W, C]."""

    reading: Reading
    max_pixels: int

    def __call__(self, name: str, data: bytes) -> np.ndarray:
        """``name`` is the client's name of the image; no file is opened."""
        path = Path(name)
        if not data:
            raise DataError(f"{name}: the image is empty")
        header = None if path.suffix.lower() == ARRAY_SUFFIX else open_header(path, io.BytesIO(data))
        width, height = stored_size(header) if header else (0, 0)
        if width * height > self.max_pixels:
            raise DataError(
                f"{name}: has {width:,}×{height:,} pixels; this server takes {self.max_pixels:,} in an image"
            )
        return decode_image(path, data, *self.reading)


class Decoders:
    """``processes`` that decode. One that dies is replaced, and its image tried once more.

    One that takes longer than ``timeout`` seconds is killed. ``on_restart`` is called for each that is replaced.
    """

    def __init__(self, decode: Decode, processes: int, timeout: float, on_restart: Callable[[], None]) -> None:
        self.decode, self.timeout, self.on_restart = decode, timeout, on_restart
        self._context = multiprocessing.get_context("forkserver")  # fork copies the locks that torch's threads hold
        self._context.set_forkserver_preload([__name__])
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for _ in range(processes):
            self._idle.put(self._start())
        self._threads = ThreadPoolExecutor(processes)  # each asks one process and waits

    async def make(self, name: str, data: bytes, make: Callable[[np.ndarray], Made]) -> Made:
        """What ``make`` makes of the pixels, in a thread; raises :class:`detector.errors.DataError`."""

        def decode_and_make() -> Made:
            return make(self._ask(name, data))

        return await asyncio.get_running_loop().run_in_executor(self._threads, decode_and_make)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().kill()

    def _ask(self, name: str, data: bytes) -> np.ndarray:
        process = self._idle.get()  # never waits: there are as many threads
        try:
            for _ in range(2):  # the system may kill any process when it is out of memory
                try:
                    return process.ask(name, data, timeout=self.timeout)
                except (EOFError, OSError, TimeoutError) as error:
                    process.kill()
                    process = self._start()
                    self.on_restart()
                    if isinstance(error, TimeoutError):
                        raise DataError(f"{name}: took longer than {self.timeout:g} s to decode") from None
            raise DataError(f"{name}: the process that decoded the image died, twice; it may be damaged")
        finally:
            self._idle.put(process)

    def _start(self) -> _Process:
        for _ in range(STARTS - 1):
            with contextlib.suppress(EOFError, OSError):  # the fork server was killed; the next try starts another
                return _Process(self._context, self.decode)
        return _Process(self._context, self.decode)


class _Process:
    """One process, asked over a pipe."""

    def __init__(self, context: Any, decode: Decode) -> None:
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, decode), daemon=True)
        self.process.start()
        other.close()

    def ask(self, name: str, data: bytes, timeout: float) -> np.ndarray:
        self.connection.send((name, data))
        if not self.connection.poll(timeout):
            raise TimeoutError
        answer = self.connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Connection, decode: Decode) -> None:
    begin_child()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the decoders' libraries write of every fault, without a name
    cv2.setNumThreads(0)  # the processes are the parallelism
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    while True:
        name, data = connection.recv()
        try:
            answer = decode(name, data)
        except DetectorError as error:
            answer = error
        except Exception as error:  # what damaged images do to a decoder is not all foreseen
            answer = DataError(f"{name}: cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        connection.send(answer)
