"""How well anchors cover the objects of a data set, known before anything is trained.

Dimension key: I images, M boxes of all images, L levels, A anchors per cell. Everything is at the input sizes of the
config: resized, and each image padded by itself (in a batch it may be padded further). Nothing is augmented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detector.config.schema import AnchorConfig, MatcherConfig, ModelConfig, ResizeConfig
from detector.data.detection import Annotations, CheckedBoxes
from detector.data.spot_check import FEW
from detector.data.transforms.resize import input_sizes, padded
from detector.ops.anchors import Anchors, cell_anchors, level_sizes
from detector.ops.assignment import assign as assign_targets
from detector.ops.coders import build_box_coder
from detector.structures import IGNORE_REGION, Category, Targets

RECALL_WANTED = 0.95  # below this, many objects give the loss few or poor positives
CHUNK = 50_000  # objects per block
# Of assigners without thresholds.
WHY_MISSED = (
    "none has its centre in them, or many overlap them equally; another model.anchors.base_size, finer model.fpn.levels"
    " or larger images may help"
)


@dataclass(frozen=True)
class InputBoxes:
    """Boxes as the model gets them, sorted by image, crowds included."""

    boxes: Tensor  # [M, 4] float32 xyxy in pixels of the input
    labels: Tensor  # [M] int64: 0..K-1 or IGNORE_REGION
    image: Tensor  # [M] int64, the image of each
    rows: Tensor  # [M] int64, the row of each in the annotations
    sizes: Tensor  # [I, 2] int64 height, width of the images
    padded: Tensor  # [I, 2] int64, the same with padding
    first: Tensor  # [I + 1] int64; image i has boxes first[i]:first[i + 1]

    @property
    def is_object(self) -> Tensor:
        return self.labels >= 0

    def objects(self) -> InputBoxes:
        """Without the crowds."""
        return self._keep(self.is_object)

    def sample(self, count: int, seed: int) -> InputBoxes:
        """The boxes of at most ``count`` images, drawn by ``seed``; image indices stay the same."""
        num_images = len(self.sizes)
        if count >= num_images:
            return self
        is_drawn = torch.zeros(num_images, dtype=torch.bool)
        is_drawn[torch.from_numpy(np.random.default_rng(seed).choice(num_images, count, replace=False))] = True
        return self._keep(is_drawn[self.image])

    def _keep(self, is_kept: Tensor) -> InputBoxes:
        image = self.image[is_kept]
        counts = torch.bincount(image, minlength=len(self.sizes))
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return InputBoxes(
            self.boxes[is_kept], self.labels[is_kept], image, self.rows[is_kept], self.sizes, self.padded, first
        )


def input_boxes(annotations: Annotations, checked: CheckedBoxes, resize: ResizeConfig, seed: int) -> InputBoxes:
    """The boxes of a split at its input sizes; with several ``resize.short``, one is drawn per image."""
    originals = torch.stack([annotations.heights, annotations.widths], dim=1)  # [I, 2]
    shorts = np.random.default_rng(seed).choice(resize.short, len(annotations))
    sizes = torch.from_numpy(input_sizes(originals.numpy(), resize, shorts))
    factors = (sizes.double() / originals).float().flip(1).repeat(1, 2)  # [I, 4], rounded as the transform rounds
    image = annotations.image_index()
    labels = torch.where(annotations.is_crowd, IGNORE_REGION, annotations.labels)
    all_boxes = InputBoxes(
        boxes=checked.boxes * factors[image],
        labels=labels,
        image=image,
        rows=torch.arange(len(labels)),
        sizes=sizes,
        padded=padded(sizes),
        first=annotations.first,
    )
    return all_boxes._keep(checked.is_kept)


class NearestCells(NamedTuple):
    """Size of each object, and its distance to the nearest cell of each level: all that its best IoU depends on."""

    sides: Tensor  # [M, 2] width, height
    distances: Tensor  # [M, L, 2] between the centres, along x and y


def nearest_cells(boxes: Tensor, sizes: Tensor, config: AnchorConfig, levels: Sequence[int]) -> NearestCells:
    """The nearest cells of ``boxes`` [M, 4] in padded images of ``sizes`` [M, 2] height, width; in float64."""
    boxes = boxes.double()
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2  # [M, 2] x, y
    images = sizes.flip(1)  # [M, 2] width, height
    distances = []
    for level in levels:
        cells = -(-images // 2**level)  # level_sizes of every image
        strides = torch.full_like(cells, 2**level) if config.strides == "exact" else images // cells
        # For any anchor shape, IoU falls as the centres move apart along either axis: only the nearest cell counts.
        nearest = (centers / strides - config.offset).round().clamp(min=0).minimum(cells - 1.0)
        distances.append(((nearest + config.offset) * strides - centers).abs())
    return NearestCells(boxes[:, 2:] - boxes[:, :2], torch.stack(distances, dim=1))


def anchor_shapes(config: AnchorConfig, levels: Sequence[int]) -> Tensor:
    """Width and height of the anchors in a cell of each level, [L, A, 2] float64."""
    per_level = []
    for level in levels:
        shape = config.at_level(level)
        cells = cell_anchors(shape.base_size, shape.ratios, shape.scales, config.rounded)
        per_level.append((cells[:, 2:] - cells[:, :2]).double())
    return torch.stack(per_level)


def shape_ious(objects: NearestCells, shapes: Tensor) -> Tensor:
    """IoU of each object with the nearest anchor of each shape: the best that the shape can give, [M, L, A]."""
    sides = objects.sides[:, None, None, :]  # [M, 1, 1, 2]
    # Intervals of lengths a and b with centres d apart overlap by (a + b) / 2 - d, at most by the shorter one.
    overlap = torch.minimum((sides + shapes) / 2 - objects.distances[:, :, None, :], torch.minimum(sides, shapes))
    overlap = overlap.clamp_(min=0).prod(dim=-1)
    union = sides.prod(dim=-1) + shapes.prod(dim=-1) - overlap
    return overlap / union


def level_ious(objects: InputBoxes, config: AnchorConfig, levels: Sequence[int]) -> Tensor:
    """The best IoU of each object over all anchors of each level, [M, L], found without comparing it with all."""
    shapes = anchor_shapes(config, levels)
    padded = objects.padded[objects.image]
    chunks = [
        shape_ious(nearest_cells(boxes, sizes, config, levels), shapes).amax(dim=2)
        for boxes, sizes in zip(objects.boxes.split(CHUNK), padded.split(CHUNK), strict=True)
    ]
    return torch.cat(chunks) if len(objects.boxes) else torch.zeros(0, len(levels), dtype=torch.float64)


class Coverage(NamedTuple):
    """How well anchors cover a set of objects."""

    objects: int
    mean_iou: float  # mean best IoU
    recall: float  # fraction at the matcher's positive threshold or above; without one, with positive anchors
    low_quality: float  # fraction below it that low-quality matching gives an anchor

    @property
    def missed(self) -> float:
        """Fraction that no anchor is matched to."""
        return max(0.0, 1 - self.recall - self.low_quality) if self.objects else 0.0


def coverage_of(best: Tensor, matcher: MatcherConfig, positives: Tensor | None = None) -> Coverage:
    """The coverage of objects by their best IoUs, ``best`` [M].

    If the matcher has no thresholds, ``positives`` [M] decide: how many anchors each is assigned, NaN where unknown.
    """
    if not len(best):
        return Coverage(0, 0.0, 0.0, 0.0)
    if matcher.has_thresholds or positives is None:
        is_covered = best >= matcher.positive
        is_saved = ~is_covered & (best > 0) & matcher.low_quality
    else:
        is_covered = positives[~positives.isnan()] > 0
        is_saved = torch.zeros_like(is_covered)
    figures = (best.mean(), is_covered.double().mean(), is_saved.double().mean())
    return Coverage(len(best), *map(float, figures))


def rare_classes(categories: Sequence[Category], counts: Sequence[int], what: str) -> list[str]:
    """A warning that names the classes with too few examples to learn; none without such a class."""
    rare = [f"{category.name} {count}" for category, count in zip(categories, counts, strict=True) if count < FEW]
    if not rare:
        return []
    names = ", ".join(rare[:5]) + (", …" if len(rare) > 5 else "")
    return [f"warning: {len(rare)} of {len(categories)} classes have under {FEW} {what} to learn from ({names})"]


class Assigned(NamedTuple):
    """How many anchors the matcher assigns to the boxes of some images."""

    positives: Tensor  # [M] int64, per box; 0 for crowds
    level_positives: list[int]  # per level
    images: int


def assign(boxes: InputBoxes, config: ModelConfig) -> Assigned:
    """Assign the anchors of every image that has boxes, as the loss does."""
    anchors_of, coder = Anchors(config.anchors, config.fpn.levels), build_box_coder(config.box_coder)
    positives = torch.zeros(len(boxes.boxes), dtype=torch.int64)
    level_positives = torch.zeros(len(config.fpn.levels), dtype=torch.int64)
    images = boxes.image.unique()
    # Images of the same size share their anchors; those of one size are held at a time.
    for size in boxes.padded[images].unique(dim=0).tolist():
        anchors, counts = anchors_of(level_sizes(*size, config.fpn.levels))
        level_of = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        is_same = (boxes.padded[images] == torch.tensor(size)).all(dim=1)
        for index in images[is_same].tolist():
            own = slice(int(boxes.first[index]), int(boxes.first[index + 1]))
            targets = Targets(boxes.boxes[None, own], boxes.labels[None, own])  # an ignore region has a label below 0
            match = assign_targets(anchors, counts, targets, None, coder, config.matcher).target[0]
            is_positive = match >= 0
            positives[own] = torch.bincount(match[is_positive], minlength=own.stop - own.start)
            level_positives += torch.bincount(level_of[is_positive], minlength=len(counts))
    return Assigned(positives, level_positives.tolist(), len(images))
