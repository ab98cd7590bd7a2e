"""Tasks: what the data, the loss, a prediction and a score are. All else takes one and never asks which.

A task is three modules. ``NAME`` is its core: the data, the loss, predictions and their score. ``NAME_results`` is what
it writes and says, without torch. ``NAME_views`` is what people look at, imported when something is drawn. To add one:
these, a line in :data:`detector.config.tasks.TASKS`, and whichever data set and head it needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from detector.config.parts import is_code
from detector.config.schema import Config, ModelConfig
from detector.errors import ConfigError, one_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from detector.data.own import BoxData
    from detector.evaluation.tally import Tally
    from detector.reports import Report, Scored
    from detector.structures import Batch, Category, Id, Losses


class Data(Protocol):
    """A split: samples by (epoch, index) that ``collate`` makes batches of."""

    categories: list[Category]
    is_wide: np.ndarray | None  # [I] bool: which images are at least as wide as high; None where all are alike
    shapes: np.ndarray | None  # [I, 2] height, width of each image in evaluation, padded; None where all are alike
    source: Path  # what it was read from, for messages
    truth: Any  # what the task scores predictions against
    images: Path  # the folder of its images

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> Any: ...

    def file(self, index: int) -> Path: ...

    @property
    def has_targets(self) -> np.ndarray: ...  # [I] bool: which images have something to learn

    def select(self, indices: Sequence[int]) -> Data: ...

    def summary(self) -> str: ...

    def warnings(self) -> list[str]: ...  # what a sample of the files shows to be in doubt


class Quickstart(NamedTuple):
    """What ``detector quickstart`` generates and trains."""

    config: str
    write: Callable[[Path, int, int, int], None]  # a data set: folder, images to train on and to evaluate on, seed
    images: tuple[int, int]  # how many of both
    data: Mapping[str, str]  # keys of the section data, and the paths in the folder that belong there
    own_data: str  # how the next command names a person's own data


class Task(Protocol):
    """The core. ``Output`` stands for what its heads return."""

    PARTS: Mapping[str, Collection[str]]  # the names that a key of the model's config may have
    FILE_FORMAT: str  # what data.*.annotations are read as
    FOLDER_FORMAT: str | None  # what data.*.images are read as without annotations; None: there must be some
    CLASSES: int  # how many its best-known data set has
    QUICKSTART: Quickstart

    # Training and evaluation: batch by batch.
    def main_metric(self, config: Config) -> str: ...
    def largest_input(self, config: Config) -> tuple[int, int]: ...
    def open_split(self, config: Config, name: str, categories: list[Category] | None = None) -> Data: ...
    def open_own(self, config: Config, name: str, own: BoxData, categories: list[Category] | None = None) -> Data: ...
    def loss(self, output: Any, targets: Any, config: ModelConfig) -> Losses: ...
    def predict(self, output: Any, batch: Batch, config: ModelConfig) -> Any: ...
    def tally(self, predictions: Any, batch: Batch, config: ModelConfig) -> Tally: ...
    def evaluate(self, tally: Tally, truth: Any, config: Config) -> dict[str, Any]: ...

    # Inference: image by image.
    def make_sample(self, image: np.ndarray, image_id: int, config: Config) -> Any: ...
    def with_threshold(self, config: ModelConfig, score: float) -> ModelConfig: ...
    def to_predictions(self, predictions: Any, categories: Sequence[Category], config: ModelConfig) -> list[Any]: ...


class Results(Protocol):
    """What is written and said of predictions."""

    FILE: str  # what inference writes
    HAS_IDS: bool  # whether it names images by the ids of a data set

    def to_results(self, found: Any, image_id: Id, name: Path) -> list[dict[str, Any]]: ...
    def write_results(self, results: Iterable[dict[str, Any]], path: Path) -> None: ...
    def describe_results(self, results: Iterable[dict[str, Any]]) -> str: ...


class Views(Protocol):
    """What people look at."""

    # The data, stored and augmented.
    def untransformed(self, data: Any) -> Data: ...
    def draw_sample(self, sample: Any, categories: Sequence[Category]) -> Image.Image: ...

    # Before the first step: what the data is to the model, and a batch as the loss sees it.
    def preview(self, data: Any, config: Config) -> list[str]: ...
    def draw_batch(self, batch: Batch, categories: Sequence[Category], config: ModelConfig) -> list[Image.Image]: ...

    # Predictions and scores.
    def draw(self, image: np.ndarray, found: Any, draw_score: float) -> Image.Image: ...
    def describe(self, metrics: dict[str, Any], per_class: bool) -> str: ...
    def write_report(self, metrics: dict[str, Any], folder: Path) -> None: ...
    def report(
        self, scored: Scored, truth: Any, config: Config, images: Path | None, against: Scored | None = None
    ) -> Report: ...


def get_task(config: Config) -> Task:
    """The core of the task that the config names, with the names in the config checked against its parts."""
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
