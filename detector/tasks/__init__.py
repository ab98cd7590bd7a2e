"""Tasks: each defines its data, loss, predictions and scores; all other code takes a task without asking which.

A task is three modules. ``NAME`` is its core: the data, the loss, predictions and their scores. ``NAME_results`` writes
and describes results, without torch. ``NAME_views`` draws and reports, and is imported only for that. To add a task,
write these, a line in :data:`detector.config.tasks.TASKS`, and the data set and head that it needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from detector.config.parts import is_code
from detector.errors import ConfigError, one_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from detector.config.schema import Config, ModelConfig
    from detector.data.large import LargeFile
    from detector.evaluation.tally import Tally
    from detector.ops.tiles import Grid
    from detector.reports import Report, Scored
    from detector.structures import Batch, Category, Id, Losses
    from detector.tasks.tiling import Part


class Data(Protocol):
    """A split: samples by (epoch, index) that ``collate`` makes batches of."""

    categories: list[Category]
    is_wide: np.ndarray | None  # [I] bool: which images are at least as wide as high; None if all have one shape
    shown: Callable[[int], np.ndarray] | None  # [I] the image that each index shows in an epoch; None: its own
    shapes: np.ndarray | None  # [I, 2] height, width of each image in evaluation, padded; None if all are equal
    source: Path  # what it was read from, for messages
    truth: Any  # the ground truth that the task scores predictions against
    images: Path  # the folder of its images

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> Any: ...

    def file(self, index: int) -> Path: ...

    def open(self, index: int) -> np.ndarray | LargeFile: ...  # the image as stored, of a task with data.tiles

    @property
    def has_targets(self) -> np.ndarray: ...  # [I] bool: which images have objects or labels

    @property
    def image_labels(self) -> tuple[np.ndarray, np.ndarray]: ...  # image and class of each object or label, [M]

    def select(self, indices: Sequence[int]) -> Data: ...

    def summary(self) -> str: ...

    def warnings(self) -> list[str]: ...  # doubts from checking a sample of the files


class Quickstart(NamedTuple):
    """What ``detector quickstart`` generates and trains on."""

    config: str
    write: Callable[[Path, int, int, int], None]  # a data set: folder, training images, evaluation images, seed
    images: tuple[int, int]  # these two numbers
    data: Mapping[str, str]  # keys of the section data, and their paths in the folder
    own_data: str  # example of a command for the user's own data
    tiny: Sequence[
        str
    ]  # for stress: overrides beside a tiny backbone and pyramid, so that a step takes hundredths of a second
    few: Sequence[str] = ()  # overrides with which random weights find something, and little of it


class Task(Protocol):
    """The core."""

    PARTS: Mapping[str, Collection[str]]  # keys of the model's config, and the names they may have
    FILE_FORMAT: str  # format of data.*.annotations
    FOLDER_FORMAT: str | None  # format of data.*.images without annotations; None: annotations are required
    CLASSES: int  # number of classes in its best-known data set
    QUICKSTART: Quickstart

    # Training and evaluation: batch by batch.
    def main_metric(self, config: Config) -> str: ...
    def largest_input(self, config: Config) -> tuple[int, int]: ...
    def open_split(
        self, config: Config, name: str, categories: list[Category] | None = None, keep_in: Path | None = None
    ) -> Data: ...  # ``keep_in``: a folder for what was read from many label files
    def has_images(self, annotations: Path) -> bool: ...  # whether these say where their images are
    def open_own(self, config: Config, name: str, own: Any, categories: list[Category] | None = None) -> Data: ...
    def loss(self, output: Any, targets: Any, config: ModelConfig, progress: float = 1.0) -> Losses: ...
    def predict(self, output: Any, batch: Batch, config: ModelConfig) -> Any: ...
    def as_predicted(self, outputs: Sequence[Tensor]) -> Any: ...  # what predict returns, of an exported file's outputs
    def mirror(self, predictions: Any, batch: Batch) -> Any: ...  # those of mirror images, in the images' own frame
    def merge(self, found: Sequence[Any], config: ModelConfig) -> Any: ...  # predictions of the same images
    def tally(self, predictions: Any, batch: Batch, config: Config) -> Tally: ...
    def evaluate(self, tally: Tally, truth: Any, config: Config) -> dict[str, Any]: ...

    # Inference: image by image.
    def make_sample(self, image: np.ndarray, image_id: int, config: Config) -> Any: ...
    def with_threshold(self, config: ModelConfig, score: float) -> ModelConfig: ...
    def to_predictions(self, predictions: Any, categories: Sequence[Category], config: ModelConfig) -> list[Any]: ...


class TiledTask(Task, Protocol):
    """A task with ``data.tiles``."""

    def tally_whole(self, prediction: Any, data: Any, index: int, config: Config) -> Tally: ...  # of joined tiles


class Difference(NamedTuple):
    """Two models' predictions of the same images."""

    is_same: bool
    text: str
    compared: int  # detections, or images where each has a prediction


class Results(Protocol):
    """How an exported file is fed and read, and how predictions are written and described. Imports no torch."""

    # An exported file.
    INPUTS: tuple[str, ...]  # settings of model.predict that the network's graph takes as inputs
    AFTER: tuple[str, ...]  # those that are applied to its outputs
    OUTPUTS: Mapping[str, tuple[str, ...]]  # what the core predicts, with names of the dimensions
    SIZE_RULE: str  # the section of the config's data that says how an image is resized
    DIVISOR: int  # of the sides of a padded batch

    def prepare(self, image: np.ndarray, data: Any) -> np.ndarray: ...  # [H, W, C] by the config's data, not padded
    def as_predictions(self, outputs: Sequence[np.ndarray], categories: Sequence[Category], predict: Any) -> list: ...

    def compare(
        self,
        own: list,
        other: list,
        score: float,  # the most that scores may differ by
        pixels: float,  # and boxes
        predict: Any,  # the config's settings that both were predicted with
        candidates: Callable[[int], Any],  # of own, the prediction of an image that keeps all
    ) -> Difference: ...

    # Writing and drawing.
    FILE: str  # name of the file that inference writes
    FIELDS: Mapping[str, Mapping[str, Any]]  # of one result, as JSON Schema
    HAS_IDS: bool  # whether it contains the data set's ids of images
    HAS_BOXES: bool  # whether label files, crops and counts can be made of it

    def draw(self, image: np.ndarray, prediction: Any, draw_score: float) -> Image.Image: ...
    def save(self, prediction: Any, name: str, output: Path) -> None: ...  # files of an image besides its drawing
    def to_results(self, prediction: Any, image_id: Id, name: Path) -> list[dict[str, Any]]: ...
    def write_results(self, results: Iterable[dict[str, Any]], path: Path) -> None: ...
    def describe_results(self, results: Iterable[dict[str, Any]]) -> str: ...


class TiledResults(Results, Protocol):
    """Those of a task with ``data.tiles``."""

    # The prediction of an image from those of its tiles, by model.predict and data.tiles.merge.
    def join(
        self, parts: Iterator[Part], grid: Grid, merge: str, categories: Sequence[Category], predict: Any
    ) -> Any: ...

    # The prediction of an image of a size, for one that was shrunk from it.
    def shrunk(self, prediction: Any, size: Sequence[int], to: Sequence[int]) -> Any: ...


class Views(Protocol):
    """Drawings, tables and reports."""

    # The data, stored and augmented.
    def untransformed(self, data: Any) -> Data: ...
    def draw_sample(self, sample: Any, categories: Sequence[Category]) -> Image.Image: ...

    # Before the first step: how the model fits the data, and a batch as the loss sees it.
    def preview(self, data: Any, config: Config) -> list[str]: ...
    def draw_batch(self, batch: Batch, categories: Sequence[Category], config: ModelConfig) -> list[Image.Image]: ...

    # Scores.
    def describe(self, metrics: dict[str, Any], per_class: bool) -> str: ...
    def write_report(self, metrics: dict[str, Any], folder: Path) -> None: ...
    def report(
        self, scored: Scored, truth: Any, config: Config, images: Path | None, against: Scored | None = None
    ) -> Report: ...


def get_task(config: Config) -> Task:
    """The core of the config's task; checks the config's names against the task's parts."""
    task = get_core(config.task)
    for key, known in task.PARTS.items():
        section, field = key.split(".")
        name = getattr(getattr(config.model, section), field)
        if name not in known and not is_code(name):
            raise ConfigError(f"model.{key}: {name!r} is not known to task {config.task}; use {one_of(known)}")
    return task


def get_core(name: str) -> Task:
    return cast(Task, importlib.import_module(f"detector.tasks.{name}"))


def get_results(name: str) -> Results:
    return cast(Results, importlib.import_module(f"detector.tasks.{name}_results"))


def get_views(name: str) -> Views:
    return cast(Views, importlib.import_module(f"detector.tasks.{name}_views"))
