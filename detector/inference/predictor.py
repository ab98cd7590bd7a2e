"""Predict images from Python: a checkpoint in, boxes or classes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.checkpoints.opening import find_checkpoint, open_model
from detector.config.schema import Config
from detector.data.inputs import ImageInput, Reading, as_array, check_images, check_threshold
from detector.data.loading.collate import by_shape, collate
from detector.device import explain_memory
from detector.models import Model
from detector.models.precision import autocast, check_precision
from detector.structures import Category
from detector.tasks import Task, get_task


class Predictor:
    """A model with everything around it: reading, resizing, batching and class names."""

    def __init__(self, model: Model, config: Config, categories: list[Category], device: torch.device) -> None:
        check_precision(config.model.predict.precision, device, "model.predict.precision")
        self.device = device
        self.model = model.to(device).eval()
        self.config = config
        self.categories = categories

    @property
    def task(self) -> Task:
        """Looked up each time: it is a module, which cannot be pickled or copied."""
        return get_task(self.config)

    @property
    def reading(self) -> Reading:
        return self.config.model.in_channels, self.config.data.exif, self.config.data.max_value

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
        model = model.fold_norms().place(own_device, config.model.predict.precision)
        return cls(model, config, categories, own_device)

    def predict(
        self, images: Iterable[ImageInput], score_threshold: float | None = None, batch_size: int = 8
    ) -> list[Any]:
        """What is in each image: a path, a PIL image, an array [H, W, C] or a tensor [C, H, W], uint8 or uint16.

        Arrays and tensors are RGB; ``image[:, :, ::-1]`` converts the BGR of ``cv2.imread``. Paths and PIL images are
        turned upright by EXIF, unless the model was trained with ``data.exif=stored``; 16-bit values are scaled by its
        ``data.max_value``. The result is a list of :class:`detector.tasks.detection.Prediction`, where
        ``score_threshold`` in [0, 1] replaces the config's own, or of
        :class:`detector.tasks.classification.ClassPrediction`. Raises :class:`detector.errors.DataError` for a file
        that cannot be read, and TypeError or ValueError for a wrong argument: before anything is predicted, or for a
        generator's image when it is taken, ``batch_size`` at a time.
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
        return self.task.make_sample(image, image_id, self.config)

    @torch.inference_mode()
    def predict_samples(self, samples: list[Any], score_threshold: float | None = None) -> list[Any]:
        """What is in each sample; samples of one shape form a batch, so none is padded to the size of another."""
        config = self.config.model
        if score_threshold is not None:
            config = self.task.with_threshold(config, score_threshold)
        predictions: list[Any] = [None] * len(samples)
        for indices in by_shape(samples):
            batch = collate([samples[index] for index in indices]).to(self.device)
            with explain_memory(batch.describe(), "give fewer images at once (--batch-size), or smaller ones"):
                with autocast(config.predict.precision, self.device):
                    output = self.model(batch.images, batch.sizes)
                found = self.task.to_predictions(self.task.predict(output, batch, config), self.categories, config)
            for index, prediction in zip(indices, found, strict=True):
                predictions[index] = prediction._replace(reading=self.reading)
        return predictions
