"""What every predictor shares: images from anywhere, batch by batch. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from detector.data.inputs import ImageInput, Reading, as_array, check_images, check_threshold
from detector.data.loading.sampler import Key
from detector.errors import DetectorError
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
        check_threshold(score_threshold)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ValueError(f"batch_size: {batch_size!r} is not a whole number of at least 1")
        checked = check_images(images, self.config.model.in_channels)
        predictions: list[Any] = []
        while samples := [self.sample(as_array(image, *self.reading)) for image in islice(checked, batch_size)]:
            predictions += self.predict_samples(samples, score_threshold)
        return predictions

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
