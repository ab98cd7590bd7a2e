"""Predict images from Python: a checkpoint in, boxes or classes out."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.checkpoints.checkpoint import weights_digest
from detector.checkpoints.opening import find_checkpoint, open_model
from detector.config.loader import config_to_dict
from detector.config.schema import Config, ModelConfig
from detector.data.loading.sampler import Key
from detector.data.loading.workers import load
from detector.inference.images import ImagePredictor, Item, Samples
from detector.inference.packed import Packed
from detector.models import Model
from detector.models.compiling import for_prediction
from detector.structures import Category
from detector.tasks import Task, get_task
from detector.tasks.predicting import check_thresholds, predict_each, predict_outputs


class Predictor(ImagePredictor):
    """The predictor of a checkpoint."""

    def __init__(self, model: Model, config: Config, categories: list[Category], device: torch.device) -> None:
        check_thresholds(config.model.predict, categories)
        self.device = device
        self.model, self.network = for_prediction(model, config.model.predict, device)
        self.config = config
        self.categories = categories

    @property
    def task(self) -> Task:
        """Looked up each time: it is a module, which cannot be pickled or copied."""
        return get_task(self.config)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str | None = None, overrides: Sequence[str] = (), allow_code: bool = False
    ) -> Predictor:
        """Open a checkpoint of this package, torchvision, Detectron2 or MMDetection: a path, URL or torchvision's name.

        ``key=value`` overrides change its config, such as ``model.predict.max_detections=300``; ``allow_code``: see
        :func:`detector.checkpoints.opening.open_model`. Raises :class:`detector.errors.WeightsError` for a file that
        is missing or is not a checkpoint.
        """
        model, config, categories = open_model(find_checkpoint(path), overrides, device, allow_code=allow_code)
        own_device = next(model.buffers()).device
        return cls(model.fold_norms(), config, categories, own_device)

    def sampler(self) -> Callable[[np.ndarray, int], Any]:
        return partial(self.task.make_sample, config=self.config)

    def check_score(self, score: float) -> None:
        self.task.with_threshold(self.config.model, score)

    def read(self, samples: Samples, batches: Iterable[list[Key]], workers: int) -> Generator[list[Item], None, None]:
        with contextlib.closing(load(samples, batches, workers, Packed.pack)) as loader:
            for packed in loader:
                yield packed.unpack()

    def predict_samples(self, samples: list[Any], score_threshold: float | None = None) -> list[Any]:
        config = self._predict_config(score_threshold)
        predictions: list[Any] = [None] * len(samples)
        for indices, predicted in predict_each(self.network, self.task, samples, config, self.device):
            found = self.task.to_predictions(predicted, self.categories, config)
            for index, prediction in zip(indices, found, strict=True):
                predictions[index] = prediction._replace(reading=self.reading)
        return predictions

    def outputs(self, samples: list[Any], score_threshold: float | None = None) -> list[tuple[np.ndarray, ...]]:
        config = self._predict_config(score_threshold)
        return predict_outputs(self.network, self.task, samples, config, self.device)

    def _predict_config(self, score_threshold: float | None) -> ModelConfig:
        config = self.config.model
        return config if score_threshold is None else self.task.with_threshold(config, score_threshold)

    def digest(self) -> str:
        asked = [config_to_dict(self.config), self.categories, weights_digest(self.model)]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
