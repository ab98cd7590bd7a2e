"""Assign ground-truth boxes to anchors.

Dimension key: B images, T targets per image (padded), N anchors in all levels, R ignore regions per image (padded).

:func:`assign` calls the assigner that the config names, then applies the ignore regions. To add an assigner, write a
function like :func:`max_iou`, and add a line to ``ASSIGNERS`` and its fields to ``MatcherConfig``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detector.config.parts import find_part
from detector.config.schema import MatcherConfig
from detector.ops.boxes import box_area, intersection
from detector.ops.chunks import rows_at_once
from detector.ops.coders import BoxCoder
from detector.structures import BACKGROUND, IGNORE, Assignment, Predictions, Targets

# Number of targets that are compared with the anchors together. Memory is O(N · BLOCK) however many objects an image
# has; the result does not depend on BLOCK.
BLOCK = 16


def assign(
    anchors: Tensor,
    level_counts: list[int],
    targets: Targets,
    predictions: Predictions | None,
    coder: BoxCoder,
    config: MatcherConfig,
) -> Assignment:
    """The target of each anchor [N, 4], by the config's assigner; ``level_counts`` is the number of anchors per level.

    A background anchor that lies in one ignore region by more than the fraction ``ignore_cover`` of its area takes no
    part in the loss. ``predictions`` is None where there is no model (drawings, the anchor report); ``coder`` decodes
    their boxes.
    """
    assigner = find_part("model.matcher.name", config.name, ASSIGNERS)
    assignment = assigner(anchors, level_counts, targets, predictions, coder, config)
    if targets.regions is None:
        return assignment
    is_ignored = _covered_area(anchors, targets.regions) > config.ignore_cover * box_area(anchors)  # [B, N]
    target = torch.where(is_ignored & (assignment.target == BACKGROUND), IGNORE, assignment.target)
    return assignment._replace(target=target)


def _covered_area(anchors: Tensor, regions: Tensor) -> Tensor:
    """The largest intersection of each anchor with one region of an image, [N, 4] and [B, R, 4] → [B, N]."""
    covered = anchors.new_zeros(len(regions), len(anchors))
    for region in regions.unbind(dim=1):  # [B, 4]
        covered = torch.maximum(covered, intersection(region[:, None], anchors))
    return covered


def max_iou(
    anchors: Tensor,
    level_counts: list[int],
    targets: Targets,
    predictions: Predictions | None,
    coder: BoxCoder,
    config: MatcherConfig,
) -> Assignment:
    """By IoU (RetinaNet, section 4): ``positive`` or more is a match, under ``negative`` is background, else ignored.

    With ``low_quality``, every object also keeps the anchors of its best IoU. Example: one object, thresholds 0.5 and
    0.4, IoU 0.6 / 0.45 / 0.3 → 0, IGNORE, BACKGROUND.
    """
    anchors = anchors.t().contiguous().t()  # column-major: reading one side of all anchors is contiguous
    # A GPU takes many images at once, as each operation costs it the same time; a CPU takes what its caches hold.
    images = rows_at_once(len(targets.boxes), BLOCK * len(anchors), anchors.device)
    groups = zip(targets.boxes.split(images), targets.labels.split(images), strict=True)
    return Assignment(torch.cat([_match_images(anchors, *group, config) for group in groups]), None)


def _match_images(anchors: Tensor, boxes: Tensor, labels: Tensor, config: MatcherConfig) -> Tensor:
    """The target index of each anchor, [B, N], for the ``boxes`` [B, T, 4] and ``labels`` [B, T] of some images."""
    areas = box_area(anchors)  # [N]
    best_iou = areas.new_zeros(len(boxes), len(areas))  # [B, N]
    best_target = torch.zeros_like(best_iou, dtype=torch.int64)  # [B, N]
    is_closest = torch.zeros_like(best_iou, dtype=torch.bool)  # [B, N]

    for start in range(0, boxes.shape[1], BLOCK):
        block = boxes[:, start : start + BLOCK, None]  # [B, T', 1, 4]
        # Padding gets infinite area, so its IoU is 0.
        is_object = labels[:, start : start + BLOCK, None] >= 0
        block_areas = torch.where(is_object, box_area(block), torch.inf)  # [B, T', 1]
        iou = areas.new_empty(*block.shape[:2], len(areas))  # [B, T', N]
        tiles = _tiles(len(areas), block.shape[:2].numel(), areas.device)
        for tile in tiles:
            shared = intersection(block, anchors[tile])  # [B, T', N']
            iou[..., tile] = shared / (block_areas + areas[tile].clamp(min=torch.finfo(areas.dtype).tiny) - shared)
            tile_iou = iou[..., tile].amax(dim=1)  # [B, N']
            # Among equal overlaps the first target wins, within a block and across blocks (hence >, not >=).
            tile_target = start + _first_equal(iou[..., tile], tile_iou)
            best_target[:, tile] = torch.where(tile_iou > best_iou[:, tile], tile_target, best_target[:, tile])
            best_iou[:, tile] = torch.maximum(best_iou[:, tile], tile_iou)
        if config.low_quality:
            # Every object keeps its closest anchors, else small ones get no gradient (Faster R-CNN, 3.1.2). An object
            # that overlaps no anchor keeps none; torchvision lacks this guard and makes all anchors positive.
            closest_iou = iou.amax(dim=2, keepdim=True)  # [B, T', 1]
            closest_iou = torch.where(closest_iou > 0, closest_iou, torch.inf)
            for tile in tiles:
                is_closest[:, tile] |= (iou[..., tile] - closest_iou).amax(dim=1) == 0

    is_positive = (best_iou >= config.positive) | is_closest
    no_target = torch.where(best_iou >= config.negative, IGNORE, BACKGROUND)
    return torch.where(is_positive, best_target, no_target)


def _tiles(num_anchors: int, num_targets: int, device: torch.device) -> list[slice]:
    """Slices of the anchors, each to be compared with ``num_targets`` targets together."""
    step = rows_at_once(num_anchors, num_targets, device)
    return [slice(start, start + step) for start in range(0, num_anchors, step)]


def _first_equal(iou: Tensor, value: Tensor) -> Tensor:
    """The first row of each column of ``iou`` [B, T', N'] that equals ``value`` [B, N']; one does.

    All in floats: on a CPU, argmax takes twenty times as long, and comparing into bools six times.
    """
    rows = iou.shape[1]
    countdown = torch.arange(rows, 0, -1, dtype=iou.dtype, device=iou.device)[:, None]  # [T', 1]
    return rows - iou.clone().eq_(value[:, None]).mul_(countdown).amax(dim=1).long()


Assigner = Callable[[Tensor, list[int], Targets, Predictions | None, BoxCoder, MatcherConfig], Assignment]

ASSIGNERS: dict[str, Assigner] = {
    "max_iou": max_iou,
}
