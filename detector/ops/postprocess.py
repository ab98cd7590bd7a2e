"""From raw predictions to final boxes: top-k before decoding, class-wise NMS, padding.

Only the best candidates of each level are decoded: at 800×1344 with 80 classes at most 5,000 boxes instead of 201,600.
A score is monotone in its logit, so the choice needs no sigmoid. All shapes are fixed by the config and the anchors: a
candidate that is dropped stays in the tensors with score 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from detector.config.schema import PredictConfig
from detector.ops import boxes as box_ops
from detector.ops.chunks import rows_at_once
from detector.ops.coders import BoxCoder
from detector.ops.logits import product_logit
from detector.structures import PADDING, Detections, Predictions
from detector.system.device import to_cpu

ROUNDS = 16  # of NMS on a GPU, before it is known whether more are needed


def select_candidates(predictions: Predictions, topk: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``topk`` best (anchor, class) pairs of each level: logits [B, M], labels [B, M], anchor indices [B, M]."""
    num_classes = predictions.cls_logits.shape[-1]
    logits, labels, anchors, start = [], [], [], 0
    for count in predictions.level_counts:
        level = predictions.cls_logits[:, start : start + count]  # [B, count, K]
        quality = None if predictions.quality is None else predictions.quality[:, start : start + count]
        # The k best pairs lie on the k anchors with the highest best class, so one pass over all logits is enough.
        best_class = score_logits(level.amax(dim=2), quality)
        anchor = best_class.topk(torch.sym_min(topk, count), dim=1).indices[..., None]  # [B, k, 1]
        pairs = level.gather(1, anchor.expand(-1, -1, num_classes))  # [B, k, K]
        pairs = score_logits(pairs, None if quality is None else quality[..., None].gather(1, anchor)).flatten(1)
        best, index = pairs.float().topk(torch.sym_min(topk, pairs.shape[1]), dim=1)
        logits.append(best)
        labels.append(index % num_classes)
        anchors.append(anchor[..., 0].gather(1, index // num_classes) + start)
        start += count
    return torch.cat(logits, dim=1), torch.cat(labels, dim=1), torch.cat(anchors, dim=1)


def score_logits(cls_logits: Tensor, quality: Tensor | None) -> Tensor:
    """What top-k and NMS rank by, as logits: the class score, times the ``quality`` if there is one (ATSS)."""
    return cls_logits if quality is None else product_logit(cls_logits, quality)


def detect(
    predictions: Predictions,
    sizes: Tensor,
    coder: BoxCoder,
    config: PredictConfig,
    sizes_original: Tensor | None = None,
) -> Detections:
    """Final boxes, clipped to ``sizes`` [B, 2] (height, width), then scaled to ``sizes_original`` if they are given.

    They are on the CPU: copying them is the only wait for a GPU. D is ``max_detections``, or the number of candidates
    if that is less. ``torch.compile`` and ``torch.export`` take it as one graph, which copies nothing.
    """
    logits, labels, anchor_index = select_candidates(predictions, config.topk)
    scores = logits.sigmoid()  # [B, M]
    channels = predictions.box_channels.gather(1, anchor_index[..., None].expand(-1, -1, coder.num_channels))
    boxes = coder.decode(channels, predictions.anchors[anchor_index])  # [B, M, 4]
    is_kept = scores > config.score_threshold  # [B, M]
    if config.clip == "before_nms":
        boxes = box_ops.clip(boxes, sizes)
        is_kept &= _is_detection(boxes, config)

    def finish(detections: Detections) -> Detections:
        if config.clip == "after_nms":
            boxes = box_ops.clip(detections.boxes, sizes)
            is_kept = (detections.scores > 0) & _is_detection(boxes, config)
            detections = _first(detections._replace(boxes=boxes), is_kept, is_kept.shape[1])
        if sizes_original is None:
            return detections
        boxes = box_ops.rescale(detections.boxes, sizes, sizes_original)
        # Rescaling rounds, so boxes at the border may exceed it by a fraction of a pixel.
        return detections._replace(boxes=box_ops.clip(boxes, sizes_original))

    return suppress(Detections(boxes, scores.where(is_kept, 0.0), labels), config, finish)


def _is_detection(boxes: Tensor, config: PredictConfig) -> Tensor:
    """False for boxes that clipping left without area, unless ``keep_empty``, [B, n]."""
    return (box_ops.box_area(boxes) > 0) | config.keep_empty


def suppress(
    candidates: Detections, config: PredictConfig, finish: Callable[[Detections], Detections] = lambda kept: kept
) -> Detections:
    """Class-wise NMS of candidates, as :func:`detect` returns detections; candidates of score 0 do not count.

    ``finish`` is what remains to be done with the detections before they are copied from a GPU.
    """
    scores, order = candidates.scores.sort(dim=1, descending=True, stable=True)
    labels = candidates.labels.gather(1, order)
    boxes = candidates.boxes.gather(1, order[..., None].expand(-1, -1, 4))
    if torch.compiler.is_exporting():
        is_kept = class_nms(boxes, scores, labels, torch.as_tensor(config.nms_threshold))
        return finish(_first(Detections(boxes, scores, labels), is_kept & (scores > 0), config.max_detections))
    # Candidates of score 0 become the same box, so the first of each class suppresses the others cheaply.
    unit = torch.arange(4, device=boxes.device) // 2  # [0, 0, 1, 1]
    apart = _move_apart(boxes.where(scores[..., None] > 0, unit).double(), labels)
    # Which of the best are kept does not depend on the rest, and a few hundred usually suffice. A compiled graph cannot
    # decide that, so it compares all.
    most, count = config.max_detections, scores.shape[1]
    compared, rounds = (count if torch.compiler.is_compiling() else 4 * most), ROUNDS
    while True:
        is_kept, is_exact = _survives(apart[:, :compared], scores[:, :compared], config.nms_threshold, rounds)
        following = F.pad(scores, (0, 1))[:, min(compared, count)]  # [B]
        is_done = is_exact & ((is_kept.sum(dim=1) >= most) | (following == 0))  # [B]
        best = Detections(boxes[:, :compared], scores[:, :compared], labels[:, :compared])
        detections = finish(_first(best, is_kept & (best.scores > 0), most))
        if torch.compiler.is_compiling():
            return detections
        # The answer is nearly always yes, so it comes with the detections instead of being waited for before them.
        *found, is_done = to_cpu(*detections, is_done)
        if is_done.all():
            return Detections(*found)
        compared, rounds = 4 * compared, 4 * rounds


@torch.library.custom_op("detector::class_nms", mutates_args=())
def class_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: Tensor) -> Tensor:
    """Which candidates [B, M], best first, class-wise NMS keeps, [B, M]; those of score 0 are of no meaning.

    One operator of fixed shape: an exported graph has it instead of torchvision's, whose output has a size of its own.
    """
    apart, rounds = _move_apart(boxes.double(), labels), ROUNDS
    while True:
        is_kept, is_exact = _survives(apart, scores, float(threshold), rounds)
        if bool(is_exact.all()):
            return is_kept
        rounds *= 4


@class_nms.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: Tensor) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def _move_apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """Boxes [B, n, 4] shifted so that those of different ``groups`` [B, n] do not overlap, in float64.

    Shifts are whole pixels, so nothing is rounded: in float32, a thousand classes away, boxes would be rounded to
    eighths of a pixel.
    """
    lowest, highest = boxes.flatten(1).aminmax(dim=1)  # [B]; boxes that are not clipped may start left of 0
    return boxes + (groups * ((highest - lowest).ceil() + 1)[:, None])[..., None]


def _survives(boxes: Tensor, scores: Tensor, threshold: float, rounds: int) -> tuple[Tensor, Tensor]:
    """Which boxes [B, n, 4], best first, NMS keeps, [B, n]; and of which images that is exact, [B]."""
    images, count = scores.shape
    if torch.compiler.is_compiling():  # one call for all images
        image = torch.arange(images, device=boxes.device).repeat_interleave(count)
        apart = _move_apart(boxes.reshape(1, -1, 4), image[None])[0]
        indices = nms(apart, scores.double().flatten(), threshold)
    elif boxes.is_cpu:  # comparisons are expensive: none between images
        kept = [nms(*image, threshold) for image in zip(boxes, scores.double(), strict=True)]
        indices = torch.cat([image * count + own for image, own in enumerate(kept)])
    else:  # launches are expensive, and so is waiting for the number of boxes that nms returns
        groups = boxes.split(rows_at_once(images, 2 * count**2, boxes.device))
        parts = [_survives_by_rounds(group, threshold, rounds) for group in groups]
        is_kept, is_exact = (torch.cat(part) for part in zip(*parts, strict=True))
        return is_kept, is_exact
    is_kept = torch.zeros(images * count, dtype=torch.bool, device=boxes.device)
    is_exact = torch.ones(images, dtype=torch.bool, device=boxes.device)
    return is_kept.index_fill(0, indices, True).view(images, count), is_exact


def _survives_by_rounds(boxes: Tensor, threshold: float, rounds: int) -> tuple[Tensor, Tensor]:
    """As :func:`_survives`, in a fixed number of operations: a box survives if no survivor before it overlaps it.

    Starting from all boxes, a round settles at least the next box of each image. It usually settles nearly all, as the
    chains of boxes of which each suppresses the next are short; where the last round changes nothing, all are settled.
    """
    suppresses = (box_ops.pairwise_iou(boxes, boxes) > threshold).triu(diagonal=1)  # [B, n, n]
    before = survives = boxes.new_ones(boxes.shape[:2], dtype=torch.bool)  # [B, n]
    for _ in range(rounds):
        before, survives = survives, ~(suppresses & survives[:, :, None]).any(dim=1)
    return survives, (survives == before).all(dim=1)


def _first(detections: Detections, is_kept: Tensor, most: int) -> Detections:
    """The first ``most`` detections of each image where ``is_kept`` [B, n], then padding."""
    count = is_kept.shape[1]
    countdown = torch.arange(count, 0, -1, device=is_kept.device) * is_kept  # [B, n]
    rank, index = countdown.topk(torch.sym_min(most, count), dim=1)
    is_detection = rank > 0  # [B, D]
    boxes, scores, labels = detections
    return Detections(
        boxes=boxes.gather(1, index[..., None].expand(-1, -1, 4)).where(is_detection[..., None], 0.0),
        scores=scores.gather(1, index).where(is_detection, 0.0),
        labels=labels.gather(1, index).where(is_detection, PADDING),
    )
