"""Segmentation: its data, its loss, the classes of pixels that logits predict, and their scores.

Dimension key: B images, K classes; h, w are the sides of the grid of logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.config.schema import Config, ModelConfig
from detector.config.tasks import HEADS
from detector.data.mask_tiles import TiledMasks
from detector.data.own_masks import MaskData, OwnMaskDataset, read_own_masks
from detector.data.segmentation import MaskDataset, Masked, MaskSample, lists_images, open_masks
from detector.data.synthetic import write_mask_shapes
from detector.data.transforms.resize import largest_size
from detector.errors import ConfigError
from detector.evaluation.segmentation import pixel_metrics, pixel_tally
from detector.evaluation.tally import Tally
from detector.evaluation.tally import merge as merge_tallies
from detector.ops.grids import Kind, interpolated, label_bands, points
from detector.ops.pixel_losses import pixel_losses
from detector.structures import Batch, Category, Losses, MaskTargets, PixelScores
from detector.tasks import Quickstart
from detector.tasks.segmentation_results import SegmentPrediction, prepare

PARTS = {"head.name": HEADS["segmentation"]}
FILE_FORMAT, FOLDER_FORMAT = "masks", None
CLASSES = 19  # Cityscapes'
QUICKSTART = Quickstart(
    config="segment_quickstart.yaml",
    write=write_mask_shapes,
    images=(1000, 100),
    data={
        "train.images": "images/train",
        "train.annotations": "masks/train",
        "val.images": "images/val",
        "val.annotations": "masks/val",
    },
    own_data="segment_r50_fpn.yaml data.train.images=images/train data.train.annotations=masks/train"
    " data.val.images=images/val data.val.annotations=masks/val 'data.classes=[background, road, car]'",
    tiny=(
        "model.head.channels=16",
        "model.head.dropout=0.1",
        "data.resize={short: [64], long: 64}",
        "data.augment={photometric: 0.5, scale_jitter: [0.7, 1.4], copy_paste: 0.5}",
    ),
)

TORCH = Kind(Tensor.long, Tensor.float)


def main_metric(config: Config) -> str:
    """The metric that decides which checkpoint is the best."""
    return "mIoU"


def largest_input(config: Config) -> tuple[int, int]:
    """Height and width of the largest input image, padded."""
    return largest_size(config.data.resize)


def open_split(
    config: Config, name: str, categories: list[Category] | None = None, keep_in: Path | None = None
) -> MaskDataset:
    """The data set of ``data.train`` (augmented, by tiles where the config says so) or ``data.val``."""
    data, tiles = open_masks(config, name, categories, keep_in), config.data.tiles
    return TiledMasks(data, tiles) if name == "train" and tiles.size else data


def has_images(annotations: Path) -> bool:
    """A CSV file and a list of Pascal VOC's say where their images are."""
    return lists_images(annotations)


def open_own(config: Config, name: str, own: MaskData, categories: list[Category] | None = None) -> OwnMaskDataset:
    """As :func:`open_split`, for data given from Python."""
    return read_own_masks(own, name, config, categories)


def make_sample(image: np.ndarray, image_id: int, config: Config) -> MaskSample:
    """An image [H, W, C] transformed for the model, without a mask."""
    pixels = torch.from_numpy(prepare(image, config.data)).permute(2, 0, 1)
    empty = torch.zeros(0, 0, dtype=torch.uint8)
    return MaskSample(pixels, empty, None, torch.zeros(0), image.shape[:2], image_id)


def loss(logits: Tensor, targets: MaskTargets, config: ModelConfig, progress: float = 1.0) -> Losses:
    """Cross entropy of the pixels that count, weighted by class, and the Dice loss; both by ``loss.*_weight``.

    Raises :class:`detector.errors.ConfigError` where both have no weight.
    """
    settings = config.loss
    if not settings.cls_weight and not settings.dice_weight:
        raise ConfigError("model.loss: cls_weight and dice_weight are both 0, so there is nothing to learn; raise one")
    entropy, dice, normaliser = pixel_losses(logits, targets, settings.label_smoothing, settings.dice_weight > 0)
    parts = {"cls": entropy * settings.cls_weight}
    if settings.dice_weight:
        parts["dice"] = dice * settings.dice_weight
    return Losses(parts, normaliser)


def predict(logits: Tensor, batch: Batch, config: ModelConfig) -> PixelScores:
    """Logarithms of the probabilities on the grid of logits: what is interpolated is not yet divided into classes."""
    stride = batch.images.shape[-1] // logits.shape[-1]
    return PixelScores(logits.float().log_softmax(dim=1), batch.sizes / stride, batch.sizes_original)


def as_predicted(outputs: Sequence[Tensor]) -> PixelScores:
    """The scores of an exported file."""
    return PixelScores(*outputs)


def mirror(predicted: PixelScores, batch: Batch) -> PixelScores:
    """The scores of mirror images in the images' own frame."""
    return _on_grid(predicted, predicted, is_mirrored=True)


def merge(found: Sequence[PixelScores], config: ModelConfig) -> PixelScores:
    """The mean of the probabilities of the same images, on the grid of the first."""
    scores = torch.stack([found[0].scores, *(_on_grid(own, found[0]).scores for own in found[1:])])
    return found[0]._replace(scores=scores.logsumexp(dim=0) - np.log(len(found)))


def _on_grid(own: PixelScores, wanted: PixelScores, is_mirrored: bool = False) -> PixelScores:
    """``own`` on the grid of ``wanted``, of the same images."""
    moved = []
    for scores, extent, covered in zip(own.scores, own.extents, wanted.extents, strict=True):
        rows, columns = map(partial(_count, device=scores.device), wanted.scores.shape[-2:])
        across = points(columns, covered[1], extent[1], TORCH, is_mirrored)
        moved.append(interpolated(scores, points(rows, covered[0], extent[0], TORCH), across))
    return wanted._replace(scores=torch.stack(moved))


def _count(number: int, device: torch.device) -> Tensor:
    return torch.arange(number, dtype=torch.float64, device=device)


def pixel_labels(predicted: PixelScores) -> list[Tensor]:
    """The classes of each image's pixels in its own size, [H, W] uint8, on the CPU: the only wait for a GPU."""
    labels = []
    for scores, extent, size in zip(
        predicted.scores, predicted.extents, predicted.sizes_original.tolist(), strict=True
    ):
        axes = (
            points(_count(side, scores.device), side, cells, TORCH) for side, cells in zip(size, extent, strict=True)
        )
        labels.append(torch.cat([band.to(torch.uint8) for band in label_bands(scores, *axes)]))
    copied = torch.cat([own.flatten() for own in labels]).cpu()
    return [part.view(own.shape) for part, own in zip(copied.split([*map(Tensor.numel, labels)]), labels, strict=True)]


def tally(predicted: PixelScores, batch: Batch, config: Config) -> Tally:
    """Right, predicted and true pixels by class of each image, and the confusion matrix, at the masks' own size."""
    classes, parts = predicted.scores.shape[1], []
    for index, labels, original in zip(
        batch.ids.tolist(), pixel_labels(predicted), batch.targets.originals, strict=True
    ):
        height, width = labels.shape
        truth = original[:height, :width].numpy()
        parts.append(pixel_tally(index, truth, labels.numpy(), classes, config.eval.boundary_iou))
    return merge_tallies(parts)


def tally_whole(prediction: SegmentPrediction, data: MaskDataset, index: int, config: Config) -> Tally:
    """As :func:`tally`, of an image that was predicted by tiles."""
    given = data.masked.mask(index), prediction.mask, len(data.categories), config.eval.boundary_iou
    return merge_tallies([pixel_tally(index, *given)])


def evaluate(tally: Tally, truth: Masked, config: Config) -> dict[str, Any]:
    """Metrics of the tally of all images of ``truth``."""
    return pixel_metrics(tally.sums, truth.categories)


# --- single images ----------------------------------------------------------------------------------------------------


def with_threshold(config: ModelConfig, score: float) -> ModelConfig:
    raise ConfigError("score: a lowest score is for detection; segmentation gives each pixel its best class")


def to_predictions(
    predicted: PixelScores, categories: Sequence[Category], config: ModelConfig
) -> list[SegmentPrediction]:
    """The mask of each image."""
    make = partial(SegmentPrediction, categories=list(categories))
    return [make(labels.numpy()) for labels in pixel_labels(predicted)]
