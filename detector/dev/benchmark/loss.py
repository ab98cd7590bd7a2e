"""Matching, focal loss and box loss, forward and backward, given a head's outputs.

torchvision divides each image's loss by its own positives and averages; ours divides once by the positives of the
batch. All images of a batch have the same objects here, so both are the same number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from detector.config.loader import load_config
from detector.config.schema import LossConfig, ModelConfig
from detector.dev.benchmark.generate import CLASSES, random_boxes
from detector.dev.benchmark.measure import RUNS, Case, Run, Settings
from detector.dev.benchmark.peer import torchvision_without_backbone
from detector.ops import boxes as box_ops
from detector.ops.anchors import Anchors, level_sizes
from detector.ops.assignment import atss, max_iou
from detector.ops.coders import DeltaCoder, build_box_coder
from detector.structures import BACKGROUND, IGNORE, Predictions, Targets
from detector.tasks import detection

HEIGHT, WIDTH = 800, 1344
LEVELS = (3, 4, 5, 6, 7)
CONFIG = ModelConfig(loss=LossConfig(box="l1"))
TOLERANCE = 1e-4  # of the loss, and of the largest gradient
DENSE_BLOCK = 2048  # anchors compared with all objects in one step


class Inputs(NamedTuple):
    predictions: Predictions  # logits and box channels require gradients
    targets: Targets
    config: ModelConfig


class Outputs(NamedTuple):
    losses: list[Tensor]  # class, box and what else the config has; normalised
    gradients: list[Tensor]  # of logits, box channels


def cases(settings: Settings) -> list[Case]:
    return [
        *(make_case(settings, objects, batch=2) for objects in (20, 500)),
        make_case(settings, 10_000, batch=1, against_dense=True),
        *(make_gfl_case(settings, objects) for objects in (20, 500)),
    ]


def make_case(settings: Settings, objects: int, batch: int, against_dense: bool = False) -> Case:
    """``against_dense``: too many objects for torchvision's matrices; the check is a dense computation in blocks."""
    height, width, count = settings.side(HEIGHT), settings.side(WIDTH), settings.scaled(objects)
    return Case(
        name=f"{height}×{width}, batch {batch}, {count:,} object{'s'[: count != 1]} per image",
        inputs=lambda _folder: make_inputs(height, width, batch, count, settings.device),
        ours=ours,
        theirs=None if against_dense else theirs,
        equal=equals_dense if against_dense else equal,
        runs=2 if against_dense else RUNS,
    )


def make_gfl_case(settings: Settings, objects: int) -> Case:
    """GFL's loss of one anchor per cell, of the same images and objects."""
    height, width, count = settings.side(HEIGHT), settings.side(WIDTH), settings.scaled(objects)
    config = load_config("retinanet_r50_fpn_gfl.yaml").model
    return Case(
        name=f"{height}×{width}, batch 2, {count:,} object{'s'[: count != 1]} per image, GFL",
        inputs=lambda _folder: make_inputs(height, width, 2, count, settings.device, config),
        ours=ours,
        theirs=None,
        equal=equals_dense_gfl,
    )


def make_inputs(height: int, width: int, batch: int, objects: int, device: str, config: ModelConfig = CONFIG) -> Inputs:
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    predictions = make_predictions(height, width, batch, generator, mean=-4.6, spread=1.0, config=config)
    boxes = torch.from_numpy(random_boxes(rng, objects, height, width)).to(device)
    labels = torch.from_numpy(rng.integers(CLASSES, size=objects)).to(device)
    logits, deltas = (part.to(device).requires_grad_() for part in predictions[:2])
    targets = Targets(boxes.expand(batch, -1, -1).contiguous(), labels.expand(batch, -1).contiguous())
    moved = Predictions(logits, deltas, predictions.anchors.to(device), predictions.level_counts)
    return Inputs(moved, targets, config)


def make_predictions(
    height: int,
    width: int,
    batch: int,
    generator: torch.Generator,
    mean: float,
    spread: float,
    config: ModelConfig = CONFIG,
) -> Predictions:
    """Normally distributed logits and box channels for images of that size."""
    anchors, level_counts = Anchors(config.anchors, LEVELS)(level_sizes(height, width, LEVELS))
    num_channels = build_box_coder(config.box_coder).num_channels
    logits = torch.randn(batch, len(anchors), CLASSES, generator=generator).mul_(spread).add_(mean)
    channels = torch.randn(batch, len(anchors), num_channels, generator=generator).mul_(0.2)
    return Predictions(logits, channels, anchors, level_counts)


def ours(inputs: Inputs) -> Run:
    def run() -> Outputs:
        losses = detection.loss(*inputs)
        return backward(inputs, [part / losses.normaliser for part in losses.parts.values()])

    return run


def theirs(inputs: Inputs) -> Run:
    model = torchvision_without_backbone(CLASSES)
    predictions = inputs.predictions
    targets = [{"boxes": boxes, "labels": labels} for boxes, labels in zip(*inputs.targets[:2], strict=True)]
    outputs = {"cls_logits": predictions.cls_logits, "bbox_regression": predictions.box_channels}

    def run() -> Outputs:
        losses = model.compute_loss(targets, outputs, [predictions.anchors] * len(targets))
        return backward(inputs, list(losses.values()))

    return run


def backward(inputs: Inputs, losses: list[Tensor]) -> Outputs:
    leaves = [inputs.predictions.cls_logits, inputs.predictions.box_channels]
    gradients = torch.autograd.grad(sum(losses), leaves)
    return Outputs([loss.detach() for loss in losses], list(gradients))


def equal(_inputs: Inputs, own: Outputs, other: Outputs) -> bool:
    return all(
        (one - two).abs().max() <= TOLERANCE * two.abs().max()
        for one, two in zip([*own.losses, *own.gradients], [*other.losses, *other.gradients], strict=True)
    )


def equals_dense(inputs: Inputs, own: Outputs, _other: None) -> bool:
    """Whether every anchor's match equals the dense one, and the loss is torchvision's focal loss of that match."""
    predictions, (boxes, labels) = inputs.predictions, (part[0] for part in inputs.targets[:2])
    match = dense_match(predictions.anchors, boxes)
    coder = DeltaCoder()
    found = max_iou(predictions.anchors, predictions.level_counts, inputs.targets, None, coder, CONFIG.matcher)
    if not torch.equal(match, found.target[0]):
        return False
    is_positive = match >= 0
    one_hot = torch.zeros_like(predictions.cls_logits[0])
    one_hot[is_positive, labels[match[is_positive]]] = 1
    is_counted = match != IGNORE
    with torch.no_grad():
        cls = sigmoid_focal_loss(predictions.cls_logits[0][is_counted], one_hot[is_counted], reduction="sum")
        deltas = coder.encode(boxes[match[is_positive]], predictions.anchors[is_positive])
        box = (predictions.box_channels[0][is_positive] - deltas).abs().sum()
    dense = [cls / is_positive.sum(), box / is_positive.sum()]
    return all((one - two).abs() <= TOLERANCE * two for one, two in zip(own.losses, dense, strict=True))


def equals_dense_gfl(inputs: Inputs, own: Outputs, _other: None) -> bool:
    """Whether the class loss is the quality focal loss of all pairs, for the assignment that tests hold."""
    predictions, targets, config = inputs
    coder = build_box_coder(config.box_coder)
    match = atss(predictions.anchors, predictions.level_counts, targets, None, coder, config.matcher).target
    image, anchor = (match >= 0).nonzero(as_tuple=True)
    target = match[image, anchor]
    with torch.no_grad():
        boxes = coder.decode(predictions.box_channels[image, anchor], predictions.anchors[anchor])
        wanted = torch.zeros_like(predictions.cls_logits)
        iou = box_ops.paired_iou(boxes, targets.boxes[image, target])
        wanted[image, anchor, targets.labels[image, target]] = iou
        entropy = F.binary_cross_entropy_with_logits(predictions.cls_logits, wanted, reduction="none")
        dense = ((predictions.cls_logits.sigmoid() - wanted) ** 2 * entropy).sum() / len(image)
    return bool((own.losses[0] - dense).abs() <= TOLERANCE * dense)


def dense_match(anchors: Tensor, boxes: Tensor) -> Tensor:
    """The target of each anchor, [N], from its IoU with all objects, computed in blocks of anchors."""
    config = CONFIG.matcher
    blocks = anchors.split(DENSE_BLOCK)
    closest = torch.stack([box_ops.pairwise_iou(boxes, block).amax(dim=1) for block in blocks]).amax(dim=0)  # [T]
    matches = []
    for block in blocks:
        iou = box_ops.pairwise_iou(boxes, block)  # [T, N']
        best, target = iou.max(dim=0)
        is_closest = ((iou == closest[:, None]) & (closest > 0)[:, None]).any(dim=0)
        match = torch.where(best >= config.negative, IGNORE, BACKGROUND)
        matches.append(torch.where((best >= config.positive) | is_closest, target, match))
    return torch.cat(matches)
