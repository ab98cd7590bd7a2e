"""Frames of video files, streams and cameras, read by OpenCV: upright, with their times, for hours."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from detector.data.headers import check_size, is_image_start
from detector.data.images import IMAGE_SUFFIXES
from detector.errors import DataError, near_path

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv")
SUFFIXES += (".3gp", ".ogv", ".h264", ".h265", ".mjpeg", ".mjpg", ".m3u8")
SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp", "rtp", "srt")
TIMEOUT = 10.0  # seconds for which opening a source, or a frame of a stream, is waited for
PAUSE = 1.0  # seconds between two attempts to connect again
LOST = 100  # frames in a row that cannot be decoded end a video
RATE = 25.0  # frames per second of a source that does not know
CUT = 0.98  # a file that ends before this fraction of its frames and of its time is cut off


class Frame(NamedTuple):
    """A frame of a :class:`Video`."""

    number: int  # in its source, from 0; those that cannot be decoded, or were skipped, count
    time: float  # seconds from the start of a file; of a live source, the Unix time at which it came
    image: np.ndarray  # [H, W, C] uint8, upright; RGB if C is 3


def is_video(source: str) -> bool:
    """Whether an input is a video: a camera's number or device, a URL, or a file that is none of images."""
    path = Path(source)
    if os.path.isfile(path):  # noqa: PTH113 (Path's functions raise for a name that is too long)
        with path.open("rb") as file:
            start = file.read(12)
        is_container = start.startswith((b"\x1aE\xdf\xa3", b"FLV", b"OggS")) or start[8:] == b"AVI "
        is_container = is_container or start[4:8] == b"ftyp"
        return not is_image_start(start) and (is_container or path.suffix.lower() in SUFFIXES)
    is_image = Path(source).suffix.lower() in IMAGE_SUFFIXES  # or a pattern of them
    return _is_camera(source) or (source.split("://")[0].lower() in SCHEMES and not is_image)


def _is_camera(source: str) -> bool:
    return source.isdecimal() or source.startswith(("/dev/video", "/dev/v4l/"))


def shown(source: str) -> str:
    """A source for messages: without a password."""
    return re.sub(r"//[^/@]*@", "//", f"camera {source}" if source.isdecimal() else source)


class Video:
    """Every ``every``-th frame of ``source``, a file's path, a URL or a camera's number, from ``start`` until ``end``.

        for frame in detector.Video("clip.mp4"):
            print(frame.number, frame.time, frame.image.shape)

    ``start`` and ``end`` are seconds, in a file; of a live source, ``end`` counts from its first frame. Live are
    cameras, and URLs of what has no length. With ``reconnect``, a live source that ends is opened again, for at most so
    many seconds after each end. It is read once. Raises :class:`detector.errors.DataError` for what cannot be opened.
    """

    def __init__(
        self,
        source: str | Path | int,
        every: int = 1,
        start: float = 0.0,
        end: float = math.inf,
        reconnect: float = 0.0,
        channels: int = 3,
    ) -> None:
        self.source = str(source)
        self.every, self.start, self.end, self.reconnect, self.channels = every, start, end, reconnect, channels
        self.is_file = os.path.isfile(self.source)  # noqa: PTH113
        self.name = self.source if self.is_file else shown(self.source)
        if channels not in (1, 3):
            raise DataError(f"{self.name}: a video has 3 channels, model.in_channels asks for {channels}")
        self._capture = self._open()
        if not self._capture.isOpened():
            raise DataError(f"{self.name}: {self._why_not_opened()}")
        self.count = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))  # 0 if unknown
        self.is_live = not self.is_file and not self.count
        rate = self._capture.get(cv2.CAP_PROP_FPS)  # of a file whose frames last differently long, an estimate
        self.rate = rate if 1 <= rate <= 240 else RATE
        self.read = 0  # frames that were returned
        self.lost = 0  # frames that could not be decoded
        self.note = ""  # why it ended, where there is something to say
        self._closed = threading.Event()

    def _open(self) -> cv2.VideoCapture:
        if not self.is_file and _is_camera(self.source):
            return cv2.VideoCapture(int(self.source) if self.source.isdecimal() else self.source)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC]
        given = [value for limit in limits for value in (limit, int(1000 * TIMEOUT))]
        # FFmpeg alone, which turns frames upright: others would take "a%d.png" as a pattern of files.
        return cv2.VideoCapture(self.source, cv2.CAP_FFMPEG, given)

    def _why_not_opened(self) -> str:
        if self.is_file:
            if not Path(self.source).stat().st_size:
                return "the file is empty"
            return "is not a video that OpenCV can read: it is damaged, cut off, or of an unknown codec"
        if "://" in self.source:
            return f"cannot be opened as a video: is the address right, and does it answer within {TIMEOUT:g} s?"
        if _is_camera(self.source):
            cameras = ", ".join(sorted(str(each) for each in Path("/dev").glob("video*"))) or "no camera"
            return f"no such camera, or another program uses it; /dev has {cameras}"
        return f"no such file{near_path(self.source)}"

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def frames(self, after: int = -1) -> Iterator[Frame]:
        """The frames after number ``after``; a live source's are numbered from there on."""
        first: tuple[int, float] | None = None
        number, at = -1, 0.0
        try:
            for number, at in self._grab(after + 1 if self.is_live else 0):
                if self.start and not self.is_live and at < self.start:  # a damaged file's times may be below 0
                    continue
                first = first or (number, at if self.is_live else 0.0)
                if at - first[1] >= self.end:
                    return
                if (number - first[0]) % self.every == 0 and number > after:
                    image = self._decode()
                    if image is None:
                        self.lost += 1
                        continue
                    self.read += 1
                    yield Frame(number, at, image)
        finally:
            self._capture.release()
        if number < 0:
            raise DataError(f"{self.name}: has no frames that can be decoded: empty, damaged, or of an unknown codec")
        if first is None:
            raise DataError(f"{self.name}: has no frame from {self.start:g} s on; the last one is at {at:.3f} s")
        if not self.is_live and number + 1 < CUT * self.count and at < CUT * (self.count - 1) / self.rate:
            self.note = f"ended after {at:.2f} s of {self.count / self.rate:.2f}: damaged or cut off"

    def _grab(self, number: int) -> Iterator[tuple[int, float]]:
        """Number and time of each frame that was grabbed; decoding it waits until :meth:`_decode`."""
        failed, since, last = 0, 0.0, -math.inf
        while not self._closed.is_set():
            if self._capture.grab():
                # A frame that cannot be decoded does not end a video, but nothing else tells it from the end.
                number, self.lost, failed = number + failed, self.lost + failed, 0
                at = time.time() if self.is_live else self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                last = at if at > last else last + 1 / self.rate  # raw H.264, for one, has no times
                yield number, last
                number += 1
                continue
            since = time.monotonic() if not failed else since
            failed += 1
            if failed < LOST and time.monotonic() - since < TIMEOUT:
                continue
            if not self._connect():
                return
            failed = 0

    def _connect(self) -> bool:
        """Open a live source again."""
        if not self.is_live or self._closed.is_set():
            return False
        self.note = "the stream ended"
        until = time.monotonic() + self.reconnect
        while time.monotonic() < until and not self._closed.wait(PAUSE):
            self._capture.release()
            self._capture = self._open()
            if self._capture.isOpened():
                self.note = ""
                return True
        if self.reconnect:
            self.note += f", and was not back within {self.reconnect:g} s"
        return False

    def _decode(self) -> np.ndarray | None:
        """The frame that was grabbed, [H, W, C]."""
        is_read, image = self._capture.retrieve()
        if not is_read or image is None:
            return None
        check_size(Path(self.name), image.shape[1], image.shape[0])
        if self.channels == 1:
            return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[:, :, None] if image.ndim == 3 else image[:, :, None]
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.ndim == 3 else cv2.COLOR_GRAY2RGB)

    def close(self) -> None:
        """End reading, also from another thread, at the next frame."""
        self._closed.set()
