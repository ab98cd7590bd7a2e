"""Detection: its data, its loss, the boxes that raw predictions become, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detector.config.parts import find_part
from detector.config.schema import Config, ModelConfig
from detector.config.tasks import HEADS
from detector.data.detection import Annotations, CocoDataset, Sample, open_dataset
from detector.data.formats.building import Source
from detector.data.formats.reading import detect as detect_format
from detector.data.own import BoxData, OwnDataset, read_own
from detector.data.synthetic import write_shapes
from detector.data.tiles import TiledDataset
from detector.data.transforms.boxes import Transform
from detector.data.transforms.mixing import MixingTransform
from detector.data.transforms.resize import largest_size
from detector.evaluation.coco import coco_metrics
from detector.evaluation.tally import Tally
from detector.ops import boxes as box_ops
from detector.ops.assignment import ASSIGNERS, assign
from detector.ops.coders import BOX_CODERS, DistributionCoder, build_box_coder
from detector.ops.losses import BOX_LOSSES, CLASS_LOSSES, LEARN_IOU
from detector.ops.postprocess import detect, suppress
from detector.structures import IGNORE, Batch, Category, Detections, Losses, Predictions, Targets
from detector.tasks import Quickstart
from detector.tasks.detection_results import Prediction, as_predictions, prepare

PARTS = {
    "head.name": HEADS["detection"],
    "matcher.name": ASSIGNERS,
    "box_coder.name": BOX_CODERS,
    "loss.cls": CLASS_LOSSES,
    "loss.box": BOX_LOSSES,
}
FILE_FORMAT, FOLDER_FORMAT = "coco", None
CLASSES = 80  # COCO's
QUICKSTART = Quickstart(
    config="quickstart.yaml",
    write=write_shapes,
    images=(4600, 200),
    data={
        "train.images": "images",
        "train.annotations": "annotations/train.json",
        "val.images": "images",
        "val.annotations": "annotations/val.json",
    },
    own_data="retinanet_r18_fpn.yaml data.train.annotations=train.json data.train.images=images/"
    " data.val.annotations=val.json data.val.images=images/",
    tiny=(
        "model.head={num_convs: 1}",
        "model.anchors={ratios: [1.0], scales: [1.0]}",
        "data.resize={short: [64], long: 64}",
        "data.augment={photometric: 0.5, scale_jitter: [0.7, 1.4], transforms: [{name: Affine, rotate: [-9, 9]}]}",
    ),
    few=("model.predict.score_threshold=0.0", "model.predict.max_detections=3"),
)


def main_metric(config: Config) -> str:
    """The metric that decides which checkpoint is the best."""
    return "AP"


def largest_input(config: Config) -> tuple[int, int]:
    """Height and width of the largest input image, padded."""
    return largest_size(config.data.resize)


def open_split(
    config: Config, name: str, categories: list[Category] | None = None, keep_in: Path | None = None
) -> CocoDataset:
    """The data set of ``data.train`` (augmented) or ``data.val``, with ``categories`` if given."""
    transform, channels = make_transform(config, name), config.model.in_channels
    return in_tiles(
        open_dataset(config.data, name, transform, categories, channels, config.seed, keep_in), name, config
    )


def in_tiles(data: CocoDataset, name: str, config: Config) -> CocoDataset:
    """Training data as the tiles that ``data.tiles`` asks for; evaluation is of whole images."""
    is_tiled = name == "train" and config.data.tiles.size
    return TiledDataset.of(data, config.data.tiles, config.seed) if is_tiled else data


def has_images(annotations: Path) -> bool:
    """Every format but COCO says where its images are."""
    return detect_format(Source(annotations)) != "coco"


def open_own(config: Config, name: str, own: BoxData, categories: list[Category] | None = None) -> OwnDataset:
    """As :func:`open_split`, for data given from Python."""
    data = read_own(own, name, make_transform(config, name), config.data, config.model.in_channels, categories)
    return in_tiles(data, name, config)


def make_transform(config: Config, name: str) -> Transform:
    """Augmentation for train, only resizing for val."""
    data = config.data
    if name == "train":
        return MixingTransform(data.resize, data.augment, config.train, config.seed, config.model.in_channels)
    return Transform(data.resize)


def make_sample(image: np.ndarray, image_id: int, config: Config) -> Sample:
    """An image [H, W, C] transformed for the model, without targets."""
    pixels = torch.from_numpy(prepare(image, config.data)).permute(2, 0, 1)
    return Sample(pixels, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), image.shape[:2], image_id)


def loss(predictions: Predictions, targets: Targets, config: ModelConfig, progress: float = 1.0) -> Losses:
    """The losses over all anchors, and their normaliser.

    Parts: ``cls``, ``box``, ``dfl`` (of distributions) and ``quality`` (of a branch). The normaliser is the number of
    positives (RetinaNet, section 4.1), or the sum of what the assigner says each counts. ``progress`` is the fraction
    of the run that is done.
    """
    anchors, coder = predictions.anchors, build_box_coder(config.box_coder)
    seen = predictions if progress >= config.matcher.warmup else None
    target, quality, weight = assign(anchors, predictions.level_counts, targets, seen, coder, config.matcher)  # [B, N]
    is_positive, is_counted = target >= 0, target != IGNORE  # [B, N]
    weight = is_positive if weight is None else weight * is_positive
    normaliser = weight.sum()
    target = target.clamp(min=0)
    labels = torch.where(is_positive, targets.labels.gather(1, target), -1)  # [B, N]
    # Anchors without a target regress to themselves at weight 0: shapes are fixed, gradients finite, and every
    # parameter takes part in every step even if a rank has no object.
    boxes = targets.boxes.gather(1, target[..., None].expand(-1, -1, 4))
    boxes = torch.where(is_positive[..., None], boxes, anchors)

    iou = None  # of each prediction with its object, [B, N]
    learns_iou = quality is None and config.loss.cls in LEARN_IOU
    if learns_iou or config.head.quality == "iou":
        iou = box_ops.paired_iou(coder.decode(predictions.box_channels.detach(), anchors), boxes)
    quality = iou if learns_iou else quality
    cls_loss = find_part("model.loss.cls", config.loss.cls, CLASS_LOSSES)
    cls_sum = cls_loss(predictions.cls_logits, labels, quality, is_counted, config.loss)
    parts = {"cls": cls_sum * config.loss.cls_weight}

    if predictions.quality is not None:
        quality = iou if config.head.quality == "iou" else box_ops.centerness(box_ops.box_centers(anchors), boxes)
        entropy = F.binary_cross_entropy_with_logits(predictions.quality.float(), quality, reduction="none")
        parts["quality"] = (entropy * is_positive).sum() * config.loss.quality_weight

    if config.loss.weigh_boxes == "score":
        weight = _shared(weight, is_positive * predictions.cls_logits.detach().amax(dim=2).float().sigmoid())
    elif config.loss.weigh_boxes == "quality" and quality is not None:
        weight = _shared(weight, is_positive * quality)
    box_loss = find_part("model.loss.box", config.loss.box, BOX_LOSSES)
    box_losses = box_loss(predictions.box_channels, anchors, boxes, coder, config.loss)  # [B, N]
    parts["box"] = (box_losses * weight).sum() * config.loss.box_weight
    if isinstance(coder, DistributionCoder):
        dfl = coder.loss(predictions.box_channels, anchors, boxes)  # [B, N]
        parts["dfl"] = (dfl * weight).sum() * config.loss.dfl_weight
    return Losses(parts, normaliser, least=1.0)


def _shared(weight: Tensor, by: Tensor) -> Tensor:
    """What an image adds to the normaliser, ``weight`` [B, N], shared out among its anchors by ``by`` [B, N].

    The published losses divide box losses by another sum than class losses, over the batch. That needs all ranks and
    accumulated parts before the first backward pass. By image, one normaliser serves all losses, and how a batch is
    divided into parts and ranks does not matter; for one image both are the same.
    """
    factor = weight.sum(dim=1) / by.sum(dim=1).clamp(min=box_ops.EPS)  # [B]
    return by * factor[:, None]


def predict(predictions: Predictions, batch: Batch, config: ModelConfig) -> Detections:
    """Final boxes in pixels of the original images, on the CPU: copying them is the only wait for a GPU."""
    sizes_original = batch.sizes_original.to(batch.sizes.device, non_blocking=True)
    return detect(predictions, batch.sizes, build_box_coder(config.box_coder), config.predict, sizes_original)


def as_predicted(outputs: Sequence[Tensor]) -> Detections:
    """The detections of an exported file."""
    return Detections(*outputs)


def mirror(detections: Detections, batch: Batch) -> Detections:
    """Boxes of mirror images in the images' own frame."""
    left, top, right, bottom = detections.boxes.unbind(dim=2)
    width = batch.sizes_original[:, 1:]
    return detections._replace(boxes=torch.stack([width - right, top, width - left, bottom], dim=2))


def merge(found: Sequence[Detections], config: ModelConfig) -> Detections:
    """Detections of the same images through one NMS."""
    return suppress(Detections(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))), config.predict)


def to_rows(detections: Detections, ids: Tensor) -> np.ndarray:
    """Results as an array [R, 7]: index of the image, left, top, width, height, score, label."""
    boxes, scores, labels = (part.double() for part in detections)
    corner, opposite = boxes.split(2, dim=-1)
    image = ids.double()[:, None].expand_as(labels)  # [B, D]
    columns = [image[..., None], corner, opposite - corner, scores[..., None], labels[..., None]]
    rows = torch.cat(columns, dim=-1).flatten(0, 1)  # doubles hold every id and label
    return rows[rows[:, -1] >= 0].numpy()


def tally(detections: Detections, batch: Batch, config: Config) -> Tally:
    """One row per detection: AP ranks the detections of all images."""
    return Tally(to_rows(detections, batch.ids))


def tally_whole(prediction: Prediction, data: CocoDataset, index: int, config: Config) -> Tally:
    """The rows of an image that was predicted by tiles."""
    columns = (torch.from_numpy(column)[None] for column in (prediction.boxes, prediction.scores, prediction.labels))
    return Tally(to_rows(Detections(*columns), torch.tensor([index])))


def evaluate(tally: Tally, truth: Annotations, config: Config) -> dict[str, Any]:
    """COCO's twelve box metrics of all results, and AP per class.

    They count ``max_detections`` per image; with tiles as many as there are in any image, as it limits those of a tile.
    """
    rows = tally.rows.reshape(-1, 7)  # a tally of no images has no columns
    most = config.model.predict.max_detections
    if config.data.tiles.size:
        most = max(most, int(np.bincount(rows[:, 0].astype(int)).max(initial=0)))
    return coco_metrics(rows, truth, config.eval.backend, most)


# --- single images ----------------------------------------------------------------------------------------------------


def with_threshold(config: ModelConfig, score: float) -> ModelConfig:
    """The config with ``score`` as its score threshold."""
    own = {"score_threshold": score, "score_thresholds": None}
    return config.model_copy(update={"predict": config.predict.model_copy(update=own)})


def to_predictions(detections: Detections, categories: Sequence[Category], config: ModelConfig) -> list[Prediction]:
    """The detections of each image, without padding and those below their class's ``score_thresholds``."""
    return as_predictions([part.numpy() for part in detections], categories, config.predict)
