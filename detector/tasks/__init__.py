"""Tasks: what the data, the loss, a prediction and a score are. The engine takes one and never asks which."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from detector.config.parts import is_code
from detector.config.schema import Config, ModelConfig
from detector.data.detection import Category
from detector.data.formats.coco_rows import Id
from detector.errors import ConfigError, one_of
from detector.reports import Report, Scored
from detector.structures import Batch, Losses
from detector.tasks import classification, detection


class Data(Protocol):
    """A split: samples by (epoch, index) that ``collate`` makes batches of."""

    categories: list[Category]
    is_wide: np.ndarray | None  # [I] bool: which pictures are at least as wide as high; None where all are alike
    shapes: np.ndarray | None  # [I, 2] height, width of each image in evaluation, padded; None where all are alike
    source: Path  # what it was read from, for messages
    truth: Any  # what the task scores predictions against
    images: Path  # the folder of its pictures

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> Any: ...

    def file(self, index: int) -> Path: ...

    @property
    def has_targets(self) -> np.ndarray: ...  # [I] bool: which pictures have something to learn

    def select(self, indices: Sequence[int]) -> Data: ...

    def summary(self) -> str: ...

    def warnings(self) -> list[str]: ...  # what a sample of the files shows to be in doubt


class Task(Protocol):
    """What a module of this package has. ``Output`` stands for what its heads return."""

    PARTS: Mapping[str, Collection[str]]  # the names that a key of the model's config may have
    RESULTS: str  # the file that inference writes

    # Training and evaluation: batch by batch.
    def main_metric(self, config: Config) -> str: ...
    def open_split(self, config: Config, name: str, categories: list[Category] | None = None) -> Data: ...
    def loss(self, output: Any, targets: Any, config: ModelConfig) -> Losses: ...
    def predict(self, output: Any, batch: Batch, config: ModelConfig) -> Any: ...
    def to_rows(self, predictions: Any, ids: Tensor) -> np.ndarray: ...
    def evaluate(self, rows: Sequence[np.ndarray], truth: Any, config: Config) -> dict[str, Any]: ...
    def describe(self, metrics: dict[str, Any], per_class: bool) -> str: ...
    def write_report(self, metrics: dict[str, Any], folder: Path) -> None: ...
    def report(
        self, scored: Scored, truth: Any, config: Config, images: Path | None, against: Scored | None = None
    ) -> Report: ...

    # Looking at the data.
    def untransformed(self, data: Any) -> Data: ...
    def draw_sample(self, sample: Any, categories: Sequence[Category]) -> Image.Image: ...

    # Before the first step: what the data is to the model, and a batch as the loss sees it.
    def preview(self, data: Any, config: Config) -> list[str]: ...
    def draw_batch(self, batch: Batch, categories: Sequence[Category], config: ModelConfig) -> list[Image.Image]: ...

    # Inference: picture by picture.
    def make_sample(self, image: np.ndarray, image_id: int, config: Config) -> Any: ...
    def with_threshold(self, config: ModelConfig, score: float) -> ModelConfig: ...
    def to_predictions(self, predictions: Any, categories: Sequence[Category], config: ModelConfig) -> list[Any]: ...
    def to_results(self, found: Any, image_id: Id, name: Path) -> list[dict[str, Any]]: ...
    def write_results(self, results: Iterable[dict[str, Any]], path: Path) -> None: ...
    def describe_results(self, results: Iterable[dict[str, Any]]) -> str: ...
    def draw(self, image: np.ndarray, found: Any, draw_score: float) -> Image.Image: ...


def get_task(config: Config) -> Task:
    """The module of the task that the config names, with the names in the config checked against its parts."""
    if config.task not in TASKS:
        raise ConfigError(f"task: unknown task {config.task!r}; use {one_of(TASKS)}")
    task = TASKS[config.task]
    for key, known in task.PARTS.items():
        section, field = key.split(".")
        name = getattr(getattr(config.model, section), field)
        if name not in known and not (key == "head.name" and is_code(name)):
            raise ConfigError(f"model.{key}: {name!r} is not known to task {config.task}; use {one_of(known)}")
    return task


TASKS: dict[str, Task] = {
    "detection": detection,
    "classification": classification,
}
