"""Classification: its data, its loss, the classes that logits predict, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detector.config.schema import Config, ModelConfig
from detector.config.tasks import HEADS
from detector.data.classification import ClassDataset, ClassSample, open_classes
from detector.data.formats.class_folders import Labelled
from detector.data.synthetic import write_class_shapes
from detector.errors import ConfigError
from detector.evaluation.classification import by_image, multi_label_metrics, single_label_metrics, single_label_tally
from detector.evaluation.tally import Tally
from detector.structures import Batch, Category, ClassTargets, Losses
from detector.system.device import to_cpu
from detector.tasks import Quickstart
from detector.tasks.classification_results import ClassPrediction, as_predictions, prepare

PARTS = {"head.name": HEADS["classification"]}
FILE_FORMAT, FOLDER_FORMAT = "csv", "class folders"
CLASSES = 1000  # ImageNet's
QUICKSTART = Quickstart(
    config="classify_quickstart.yaml",
    write=write_class_shapes,
    images=(400, 100),
    data={"train.images": "train", "val.images": "val"},
    own_data="classify_r50_fpn.yaml data.train.images=CLASS_FOLDERS/ data.val_share=0.2",
    tiny=("data.crop={size: 64}", "data.augment={photometric: 0.5, transforms: [{name: Affine, rotate: [-9, 9]}]}"),
)

open_split = open_classes


def main_metric(config: Config) -> str:
    """The metric that decides which checkpoint is the best."""
    return "mAP" if config.model.multi_label else "top1"


def largest_input(config: Config) -> tuple[int, int]:
    """Height and width of every input image."""
    return config.data.crop.size, config.data.crop.size


def has_images(annotations: Path) -> bool:
    """A CSV file does not say where its images are."""
    return False


def open_own(config: Config, name: str, own: Any, categories: list[Category] | None = None) -> ClassDataset:
    raise ConfigError(
        "task: data given from Python must be boxes or masks, for detection or segmentation; name a folder or CSV file"
        " in data.train"
    )


def make_sample(image: np.ndarray, image_id: int, config: Config) -> ClassSample:
    """An image [H, W, C] transformed for the model, without a class."""
    empty, tensor = torch.zeros(0), torch.from_numpy(prepare(image, config.data)).permute(2, 0, 1)
    return ClassSample(tensor, empty, empty, image.shape[:2], image_id)


def loss(logits: Tensor, targets: ClassTargets, config: ModelConfig, progress: float = 1.0) -> Losses:
    """Cross entropy, or with ``multi_label`` binary cross entropy, of smoothed targets, weighted by class."""
    probabilities, weights, smoothing = targets.probabilities, targets.weights, config.loss.label_smoothing
    logits = logits.float()
    if config.multi_label:
        probabilities = probabilities * (1 - smoothing) + smoothing / 2
        total = F.binary_cross_entropy_with_logits(logits, probabilities, weights, reduction="sum")
        return Losses({"cls": total}, weights.sum())
    smoothed = probabilities * (1 - smoothing) + smoothing / logits.shape[1]
    return Losses({"cls": -(weights * smoothed * logits.log_softmax(dim=1)).sum()}, (weights * probabilities).sum())


def predict(logits: Tensor, batch: Batch, config: ModelConfig) -> Tensor:
    """Scores [B, K]: they sum to 1 per image, or with ``multi_label`` are independent."""
    return logits.float().sigmoid() if config.multi_label else logits.float().softmax(dim=1)


def as_predicted(outputs: Sequence[Tensor]) -> Tensor:
    """The scores, an exported file's only output."""
    return outputs[0]


def mirror(scores: Tensor, batch: Batch) -> Tensor:
    """A mirror image has the same classes."""
    return scores


def merge(found: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """The mean of the scores of the same images."""
    return torch.stack(list(found)).mean(dim=0)


def tally(scores: Tensor, batch: Batch, config: Config) -> Tally:
    """With ``multi_label``, rows [B, 1 + K] of image and scores, as AP ranks all images; else single_label_tally's."""
    if config.model.multi_label:
        return Tally(torch.cat([batch.ids[:, None].double(), scores.cpu().double()], dim=1).numpy())
    labels = batch.targets.probabilities.argmax(dim=1)  # in evaluation no images are mixed
    scores, labels = to_cpu(scores.double(), labels)
    return single_label_tally(batch.ids.numpy(), scores.numpy(), labels.numpy())


def evaluate(tally: Tally, truth: Labelled, config: Config) -> dict[str, Any]:
    """Metrics of the tally of all images of ``truth``."""
    if config.model.multi_label:
        return multi_label_metrics(by_image(tally.rows), truth.is_true(), truth.categories)
    return single_label_metrics(tally, truth.categories)


# --- single images ----------------------------------------------------------------------------------------------------


def with_threshold(config: ModelConfig, score: float) -> ModelConfig:
    raise ConfigError(
        "score: a lowest score is for detection; classification gives the best model.predict.classes classes"
    )


def to_predictions(scores: Tensor, categories: Sequence[Category], config: ModelConfig) -> list[ClassPrediction]:
    """The ``predict.classes`` best classes of each image."""
    return as_predictions([scores.cpu().numpy()], categories, config.predict)
