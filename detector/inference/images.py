"""What every predictor shares: images from anywhere, batch by batch. Imports no torch."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from detector.data.inputs import ImageInput, Reading, as_array, check_image, check_images, check_threshold
from detector.data.loading.sampler import Key
from detector.errors import DetectorError
from detector.inference.streaming import read_ahead
from detector.inference.video import Frame
from detector.structures import Category

AHEAD = 2  # batches that are read while one is predicted


class Item(NamedTuple):
    """An image of a folder."""

    image: np.ndarray | None  # [H, W, C], if it will be drawn
    sample: Any  # None if it could not be read
    error: str


class Samples(Protocol):
    """What the processes or threads read: items by key, and the file of each for messages."""

    def __getitem__(self, key: Key) -> Item: ...

    def file(self, index: int) -> Path: ...


class ImagePredictor(ABC):
    """A model with everything around it: reading, resizing, batching and class names."""

    config: Any  # the resolved config; of an exported file, its values without their types
    categories: list[Category]

    @property
    def reading(self) -> Reading:
        return self.config.model.in_channels, self.config.data.exif, self.config.data.max_value

    def predict(
        self, images: Iterable[ImageInput], score_threshold: float | None = None, batch_size: int = 8
    ) -> list[Any]:
        """What is in each image: a path, a PIL image, an array [H, W, C] or a tensor [C, H, W], uint8 or uint16.

        Arrays and tensors are RGB; ``image[:, :, ::-1]`` converts the BGR of ``cv2.imread``. Paths and PIL images are
        turned upright by EXIF, unless the model was trained with ``data.exif=stored``; 16-bit values are scaled by its
        ``data.max_value``. The result is a list of :class:`detector.tasks.detection_results.Prediction`, where
        ``score_threshold`` in [0, 1] replaces the config's own, of
        :class:`detector.tasks.classification_results.ClassPrediction`, or of
        :class:`detector.tasks.segmentation_results.SegmentPrediction`. Raises :class:`detector.errors.DataError` for a
        file that cannot be read, and TypeError or ValueError for a wrong argument: before anything is predicted, or for
        a generator's image when it is taken, ``batch_size`` at a time.
        """
        _check_settings(score_threshold, batch_size)
        checked = check_images(images, self.config.model.in_channels)
        predictions: list[Any] = []
        while samples := [self.sample(as_array(image, *self.reading)) for image in islice(checked, batch_size)]:
            predictions += self.predict_samples(samples, score_threshold)
        return predictions

    def stream(
        self,
        images: Iterable[ImageInput | Frame],
        score_threshold: float | None = None,
        batch_size: int = 8,
        wait: float | None = 0.0,
        drop: bool = False,
    ) -> Generator[tuple[Any, Any], None, None]:
        """Each of ``images``, which may never end, with what is in it, as soon as that is known:

            for frame, found in predictor.stream(detector.Video("clip.mp4")):
                print(frame.time, found)

        A thread takes images ahead while a batch is predicted, at most ``batch_size``. Those that have come then form
        the next batch, after waiting ``wait`` seconds for others if it is not full (None: however long it takes). So a
        prediction comes at most ``wait`` seconds and the time of two batches after its image was taken, if the caller
        takes predictions without delay. Where images come faster than they are predicted, their source waits; with
        ``drop`` it does not, and the oldest that wait are dropped, as a camera needs. Frames of a
        :class:`detector.inference.video.Video` are taken as they are, other images as by :meth:`predict`.
        """
        _check_settings(score_threshold, batch_size)
        if not hasattr(images, "__iter__") or isinstance(images, str | Path):
            raise TypeError(f"stream takes an iterable of images; this is of type {type(images).__name__}")
        return self._stream(images, score_threshold, int(batch_size), wait, drop)

    def _stream(
        self,
        images: Iterable[ImageInput | Frame],
        score_threshold: float | None,
        batch_size: int,
        wait: float | None,
        drop: bool,
    ) -> Generator[tuple[Any, Any], None, None]:
        def samples() -> Iterator[tuple[Any, Any]]:
            for number, image in enumerate(images):
                pixels = image.image if isinstance(image, Frame) else image
                check_image(pixels, self.config.model.in_channels, f"image {number}")
                yield image, self.sample(as_array(pixels, *self.reading))

        with contextlib.closing(read_ahead(samples(), batch_size, wait, drop)) as batches:
            for batch in batches:
                found = self.predict_samples([sample for _, sample in batch], score_threshold)
                yield from zip((image for image, _ in batch), found, strict=True)

    def sample(self, image: np.ndarray, image_id: int = 0) -> Any:
        """An image [H, W, C] as the model wants it, without targets."""
        return self.sampler()(image, image_id)

    @abstractmethod
    def sampler(self) -> Callable[[np.ndarray, int], Any]:
        """:meth:`sample` as a function that other processes can take."""

    @abstractmethod
    def check_score(self, score: float) -> None:
        """Raise :class:`detector.errors.ConfigError` where the model has no score threshold to set."""

    @abstractmethod
    def predict_samples(self, samples: list[Any], score_threshold: float | None = None) -> list[Any]:
        """What is in each sample; samples of one shape form a batch, so none is padded to the size of another."""

    def read(self, samples: Samples, batches: Iterable[list[Key]], workers: int) -> Generator[list[Item], None, None]:
        """The items of each batch, read ahead by ``workers``; an error becomes an item without a sample.

        By threads: OpenCV decodes and resizes without Python's lock.
        """

        def read_one(key: Key) -> Item:
            try:
                return samples[key]
            except DetectorError as error:
                return Item(None, None, str(error))

        with ThreadPoolExecutor(max(1, workers)) as pool:
            waiting = deque[list[Future[Item]]]()
            try:
                for keys in batches:
                    waiting.append([pool.submit(read_one, key) for key in keys])
                    if len(waiting) > AHEAD:
                        yield [item.result() for item in waiting.popleft()]
                while waiting:
                    yield [item.result() for item in waiting.popleft()]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    @abstractmethod
    def digest(self) -> str:
        """Identifies everything that affects its results."""


def _check_settings(score_threshold: object, batch_size: object) -> None:
    check_threshold(score_threshold)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch_size: {batch_size!r} is not a whole number of at least 1")
