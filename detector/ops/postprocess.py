"""From raw predictions to final boxes: top-k before decode, class-wise NMS, padding.

Only the best candidates of each level are ever decoded: at 800×1344 with 80 classes that is 5,000 boxes instead of
201,600 (a score is monotone in its logit, so the choice needs no sigmoid).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from detector.config.schema import PredictConfig
from detector.ops import boxes as box_ops
from detector.structures import PADDING, Detections, Predictions


def select_candidates(predictions: Predictions, topk: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``topk`` best (anchor, class) pairs of each level: logits [B, M], labels [B, M], anchor indices [B, M]."""
    num_classes = predictions.cls_logits.shape[-1]
    logits, labels, anchors, start = [], [], [], 0
    for count in predictions.level_counts:
        level = predictions.cls_logits[:, start : start + count]  # [B, count, K]
        # Of k pairs, the anchors are among the k whose best class is best. So one pass over all logits is enough.
        anchor = level.amax(dim=2).topk(min(topk, count), dim=1).indices  # [B, k]
        pairs = level.gather(1, anchor[..., None].expand(-1, -1, num_classes)).flatten(1)  # [B, k · K]
        best, place = pairs.float().topk(min(topk, pairs.shape[1]), dim=1)
        logits.append(best)
        labels.append(place % num_classes)
        anchors.append(anchor.gather(1, place // num_classes) + start)
        start += count
    return torch.cat(logits, dim=1), torch.cat(labels, dim=1), torch.cat(anchors, dim=1)


def detect(predictions: Predictions, sizes: Tensor, config: PredictConfig) -> Detections:
    """Final boxes in pixels of the padded input, clipped to ``sizes`` [B, 2] (height, width)."""
    logits, labels, anchor_index = select_candidates(predictions, config.topk)
    scores = logits.sigmoid()  # [B, M]
    deltas = predictions.box_deltas.gather(1, anchor_index[..., None].expand(-1, -1, 4))  # [B, M, 4]
    boxes = box_ops.decode(deltas, predictions.anchors[anchor_index])
    is_kept = scores > config.score_threshold  # [B, M]
    if config.clip == "before_nms":
        boxes = box_ops.clip(boxes, sizes)
        is_kept &= _is_detection(boxes, config)
    images = [
        _suppress(*(part[row][is_kept[row]] for part in (boxes, scores, labels)), config) for row in range(len(scores))
    ]
    detections = _pad(images, boxes)
    if config.clip == "before_nms":
        return detections
    boxes = box_ops.clip(detections.boxes, sizes)
    is_kept = (detections.labels != PADDING) & _is_detection(boxes, config)
    images = [tuple(part[row][is_kept[row]] for part in (boxes, *detections[1:])) for row in range(len(boxes))]
    return _pad(images, boxes)


def _is_detection(boxes: Tensor, config: PredictConfig) -> Tensor:
    """A box that clipping left without area is none."""
    return (box_ops.box_area(boxes) > 0) | config.keep_empty


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, config: PredictConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Class-wise NMS of one image, best first."""
    if len(boxes) == 0:
        return boxes, scores, labels
    # Classes are moved apart so that one NMS call never compares two of them: by more than all boxes reach from end to
    # end, as those that are not clipped yet may begin at negative coordinates. In float64, because a thousand classes
    # away float32 rounds to eighths of a pixel.
    exact = boxes.double()
    lowest, highest = exact.aminmax()
    apart = exact + (labels * (highest - lowest + 1))[:, None]
    order = scores.argsort(descending=True, stable=True)
    # What is kept of the best does not depend on the rest, and the best few hundred are usually enough.
    num_compared = 4 * config.max_detections
    while True:
        compared = order[:num_compared]
        kept = compared[nms(apart[compared], scores[compared].double(), config.nms_threshold)]
        if len(kept) >= config.max_detections or num_compared >= len(order):
            kept = kept[: config.max_detections]
            return boxes[kept], scores[kept], labels[kept]
        num_compared *= 4


def _pad(images: list[tuple[Tensor, Tensor, Tensor]], like: Tensor) -> Detections:
    most = max((len(scores) for _, scores, _ in images), default=0)
    detections = Detections(
        boxes=like.new_zeros(len(images), most, 4),
        scores=like.new_zeros(len(images), most),
        labels=torch.full((len(images), most), PADDING, dtype=torch.int64, device=like.device),
    )
    for row, parts in enumerate(images):
        for padded, part in zip(detections, parts, strict=True):
            padded[row, : len(part)] = part
    return detections
