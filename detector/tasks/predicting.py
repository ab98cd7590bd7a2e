"""From a batch to a task's predictions: of the images as they are, or merged over mirror images and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detector.config.schema import ModelConfig, PredictConfig
from detector.data.loading.collate import collate
from detector.data.transforms.resize import by_shape, padded
from detector.errors import ConfigError, one_of
from detector.models.precision import autocast
from detector.structures import Batch, Category
from detector.system.device import explain_memory
from detector.tasks import Task


def check_thresholds(predict: PredictConfig, categories: Sequence[Category]) -> None:
    """Raises :class:`detector.errors.ConfigError` for a score threshold of a class that there is not."""
    known = {category.name for category in categories}
    if unknown := sorted(set(predict.score_thresholds or {}) - known):
        raise ConfigError(f"model.predict.score_thresholds: {unknown[0]!r} is not one of {one_of(sorted(known))}")


@torch.inference_mode()
def predict_merged(model: Callable[..., Any], task: Task, batch: Batch, config: ModelConfig) -> Any:
    """The task's predictions for a batch, with ``predict.flip`` and ``predict.scales``."""
    found = []
    for view, is_mirrored in _views(batch, config.predict):
        with autocast(config.predict.precision, batch.images.device):
            output = model(view.images, view.sizes)
        own = task.predict(output, view, config)
        found.append(task.mirror(own, view) if is_mirrored else own)
    return found[0] if len(found) == 1 else task.merge(found, config)


def predict_each(
    model: Callable[..., Any], task: Task, samples: Sequence[Any], config: ModelConfig, device: torch.device
) -> Iterator[tuple[list[int], Any]]:
    """The task's predictions of the samples of each shape, which form a batch, and their indices."""
    for indices in by_shape(samples):
        batch = collate([samples[index] for index in indices]).to(device)
        with explain_memory(batch.describe(), "give fewer images at once (--batch-size), or smaller ones"):
            yield indices, predict_merged(model, task, batch, config)


def predict_outputs(
    model: Callable[..., Any], task: Task, samples: Sequence[Any], config: ModelConfig, device: torch.device
) -> list[tuple[np.ndarray, ...]]:
    """The predictions of each sample as arrays, in the order of the task's ``OUTPUTS``."""
    outputs: list[Any] = [()] * len(samples)
    for indices, predicted in predict_each(model, task, samples, config, device):
        for index, *own in zip(indices, *(part.cpu().numpy() for part in predicted), strict=True):
            outputs[index] = tuple(own)
    return outputs


def _views(batch: Batch, config: PredictConfig) -> Iterator[tuple[Batch, bool]]:
    """The batch at each size, as it is and as mirror images; and whether it is these."""
    for scale in config.scales:
        view = batch if scale == 1 else scaled(batch, scale)
        yield view, False
        if config.flip:
            yield mirrored(view), True


def scaled(batch: Batch, scale: float) -> Batch:
    """The images at ``scale`` times their size, padded by the padded size alone, so that none depends on another."""
    sizes = (batch.sizes * scale).round().long().clamp(min=1)
    height, width = (padded(max(1, round(side * scale))) for side in batch.images.shape[-2:])
    images = _empty(batch.images, height, width)
    for row, (old, new) in enumerate(zip(batch.sizes.tolist(), sizes.tolist(), strict=True)):
        own = batch.images[row : row + 1, :, : old[0], : old[1]].float()
        resized = F.interpolate(own, new, mode="bilinear", antialias=True)  # without overshooting
        images[row, :, : new[0], : new[1]] = resized[0].round().to(images.dtype)
    return batch._replace(images=images, sizes=sizes)


def mirrored(batch: Batch) -> Batch:
    """Each image flipped left to right within its own size."""
    images = _empty(batch.images, *batch.images.shape[-2:])
    for row, (height, width) in enumerate(batch.sizes.tolist()):
        images[row, :, :height, :width] = batch.images[row, :, :height, :width].flip(-1)
    return batch._replace(images=images)


def _empty(images: Tensor, height: int, width: int) -> Tensor:
    """Zeros [B, C, height, width], channels last."""
    return images.new_zeros(len(images), height, width, images.shape[1]).permute(0, 3, 1, 2)
