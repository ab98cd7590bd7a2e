"""What every predictor shares: images from anywhere, batch by batch, whole or by tiles. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import numpy as np

from detector.data.images import read_image
from detector.data.inputs import ImageInput, Reading, as_array, check_image, check_images, check_threshold
from detector.data.large import LargeFile, open_image
from detector.data.loading.sampler import Key
from detector.errors import DataError, DetectorError
from detector.inference.streaming import read_ahead
from detector.inference.video import Frame
from detector.structures import Category
from detector.tasks import get_results
from detector.tasks.tiling import Tiles, predict_tiled, tiles_of

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

    device: Any  # what it computes on
    config: Any  # the resolved config; of an exported file, its values without their types
    categories: list[Category]

    @property
    def reading(self) -> Reading:
        return self.config.model.in_channels, self.config.data.exif, self.config.data.max_value

    def predict(
        self,
        images: Iterable[ImageInput],
        score_threshold: float | None = None,
        batch_size: int = 8,
        tiles: int | Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """What is in each image: a path, a PIL image, an array [H, W, C] or a tensor [C, H, W], uint8 or uint16.

        Arrays and tensors are RGB; ``image[:, :, ::-1]`` converts the BGR of ``cv2.imread``. Paths and PIL images are
        turned upright by EXIF, unless the model was trained with ``data.exif=stored``; 16-bit values are scaled by its
        ``data.max_value``. The result is a list of :class:`detector.tasks.detection_results.Prediction`, where
        ``score_threshold`` in [0, 1] replaces the config's own, of
        :class:`detector.tasks.classification_results.ClassPrediction`, or of
        :class:`detector.tasks.segmentation_results.SegmentPrediction`. ``tiles`` is the side of the squares, in pixels,
        that large images are predicted in, ``batch_size`` at a time, or some keys of the config's ``data.tiles``, such
        as ``{"size": 512, "merge": "ios"}``; ``{"size": None}`` sees images whole. Raises
        :class:`detector.errors.DataError` for a file that cannot be read, and TypeError or ValueError for a wrong
        argument: before anything is predicted, or for a generator's image when it is taken, ``batch_size`` at a time.
        """
        _check_settings(score_threshold, batch_size)
        if wanted := tiles_of(self.config, tiles):
            return TiledPredictor(self, wanted, batch_size).predict_all(images, score_threshold)
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

    def opener(self) -> Callable[[Path], Any]:
        """What reads an image for :meth:`sampler`."""
        channels, exif, max_value = self.reading
        return partial(read_image, channels=channels, exif=exif, max_value=max_value)

    @abstractmethod
    def sampler(self) -> Callable[[np.ndarray, int], Any]:
        """:meth:`sample` as a function that other processes can take."""

    @abstractmethod
    def check_score(self, score: float) -> None:
        """Raise :class:`detector.errors.ConfigError` where the model has no score threshold to set."""

    @abstractmethod
    def predict_samples(self, samples: list[Any], score_threshold: float | None = None) -> list[Any]:
        """What is in each sample; samples of one shape form a batch, so none is padded to the size of another."""

    def predict_or_error(self, samples: list[Any], score_threshold: float | None = None) -> list[Any]:
        """:meth:`predict_samples`, with the error in place of an image that proves damaged when its tiles are read."""
        return self.predict_samples(samples, score_threshold)

    @abstractmethod
    def outputs(self, samples: list[Any], score_threshold: float | None = None) -> Sequence[Sequence[np.ndarray]]:
        """What the model gives for each sample, as arrays that the task's ``join`` takes."""

    def read(self, samples: Samples, batches: Iterable[list[Key]], workers: int) -> Generator[list[Item], None, None]:
        """The items of each batch, read ahead by ``workers``; an error becomes an item without a sample."""
        return read_by_threads(samples, batches, workers, AHEAD)

    @abstractmethod
    def digest(self) -> str:
        """Identifies everything that affects its results."""


def _check_settings(score_threshold: object, batch_size: object) -> None:
    check_threshold(score_threshold)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch_size: {batch_size!r} is not a whole number of at least 1")


class Whole(NamedTuple):
    """An image that is to be predicted by tiles."""

    image: np.ndarray | LargeFile  # [H, W, C]
    id: int

    @property
    def size_original(self) -> tuple[int, int]:
        return self.image.shape[:2]


class TiledPredictor(ImagePredictor):
    """A predictor of images that the one it is made of sees tile by tile, ``batch_size`` tiles at a time."""

    def __init__(self, predictor: ImagePredictor, tiles: Tiles, batch_size: int) -> None:
        self.inner, self.tiles, self.batch_size = predictor, tiles, batch_size
        self.config, self.categories, self.device = predictor.config, predictor.categories, predictor.device

    def predict_all(self, images: Iterable[ImageInput], score_threshold: float | None) -> list[Any]:
        """:meth:`ImagePredictor.predict`; of its arguments, ``images`` are not checked yet."""
        checked = check_images(images, self.config.model.in_channels)
        opened = (
            self.opener()(Path(image)) if isinstance(image, str | Path) else as_array(image, *self.reading)
            for image in checked
        )
        return [self._predict(image, score_threshold) for image in opened]

    def opener(self) -> Callable[[Path], Any]:
        channels, exif, max_value = self.reading
        return partial(open_image, channels=channels, exif=exif, max_value=max_value)

    def sampler(self) -> Callable[[np.ndarray, int], Any]:
        return Whole

    def check_score(self, score: float) -> None:
        self.inner.check_score(score)

    def predict_samples(self, samples: list[Whole], score_threshold: float | None = None) -> list[Any]:
        return [self._predict(sample.image, score_threshold) for sample in samples]

    def predict_or_error(self, samples: list[Whole], score_threshold: float | None = None) -> list[Any]:
        def predict(sample: Whole) -> Any:
            try:
                return self._predict(sample.image, score_threshold)
            except DataError as error:
                return error

        return list(map(predict, samples))

    def outputs(self, samples: list[Any], score_threshold: float | None = None) -> Any:
        return self.inner.outputs(samples, score_threshold)

    def read(self, samples: Samples, batches: Iterable[list[Key]], workers: int) -> Generator[list[Item], None, None]:
        """One batch ahead, by a thread: a few large images fill the memory."""
        return read_by_threads(samples, batches, 1, 1)

    def digest(self) -> str:
        asked = json.dumps([self.inner.digest(), self.tiles, self.batch_size])
        return hashlib.sha256(asked.encode()).hexdigest()

    def _predict(self, image: np.ndarray | LargeFile, score_threshold: float | None) -> Any:
        predict = self.config.model.predict
        if score_threshold is not None:
            predict = SimpleNamespace(nms_threshold=predict.nms_threshold, score_thresholds=None)
        results = get_results(self.config.task)
        return predict_tiled(
            image,
            self.tiles,
            self.batch_size,
            self.inner.sample,
            partial(self.outputs, score_threshold=score_threshold),
            lambda parts, grid: results.join(parts, grid, self.tiles.merge, self.categories, predict),
        )._replace(reading=self.reading)


def by_tiles(predictor: ImagePredictor, batch_size: int) -> ImagePredictor:
    """The predictor, by tiles where its config's ``data.tiles`` says so."""
    tiles = tiles_of(predictor.config)
    return TiledPredictor(predictor, tiles, batch_size) if tiles else predictor


def read_by_threads(
    samples: Samples, batches: Iterable[list[Key]], workers: int, ahead: int
) -> Generator[list[Item], None, None]:
    """The items of each batch, up to ``ahead`` batches before they are needed; OpenCV decodes without Python's lock."""

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
                if len(waiting) > ahead:
                    yield [item.result() for item in waiting.popleft()]
            while waiting:
                yield [item.result() for item in waiting.popleft()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
