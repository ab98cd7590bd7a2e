"""Assign ground-truth boxes to anchors.

Dimension key: T targets of one image (padded), N anchors in all levels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detector.boxes import pairwise_cover, pairwise_iou
from detector.config import MatcherConfig
from detector.structures import IGNORE_REGION

BACKGROUND = -1
IGNORE = -2

# Targets compared with all anchors at once. Memory is O(N · BLOCK) however many objects an image has, and the result
# does not depend on it.
BLOCK = 16


def match_anchors(anchors: Tensor, boxes: Tensor, labels: Tensor, config: MatcherConfig) -> Tensor:
    """Index of the target of each anchor, [N]; BACKGROUND or IGNORE where it has none.

    ``boxes`` [T, 4] and ``labels`` [T] are one row of :class:`~detector.structures.Targets`. By IoU: at least
    ``positive`` is a match, under ``negative`` is background, between them takes no part in the loss; with
    ``low_quality`` every object also keeps its closest anchors. An anchor that lies in an ignore region by more than
    ``ignore_cover`` and matches nothing takes no part either.
    """
    best_iou = anchors.new_zeros(len(anchors))  # [N]
    best_target = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)  # [N]
    is_closest = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)  # [N]
    in_ignore_region = is_closest.clone()  # [N]
    is_object = labels >= 0  # [T]
    is_region = labels == IGNORE_REGION  # [T]

    for start in range(0, len(boxes), BLOCK):
        block = slice(start, start + BLOCK)
        iou = pairwise_iou(boxes[block], anchors) * is_object[block, None]  # [T', N]
        block_iou, block_target = iou.max(dim=0)
        # Strictly greater: of equal overlaps the first target wins, as in one argmax over all of them.
        is_better = block_iou > best_iou
        best_iou = torch.where(is_better, block_iou, best_iou)
        best_target = torch.where(is_better, block_target + start, best_target)
        if config.low_quality:
            # Every object keeps its closest anchors, else small ones get no gradient (Faster R-CNN, 3.1.2). An object
            # that overlaps no anchor is closest to none: torchvision lacks this guard and makes all of them positive.
            closest_iou = iou.max(dim=1, keepdim=True).values
            is_closest |= ((iou == closest_iou) & (closest_iou > 0)).any(dim=0)
        cover = pairwise_cover(anchors, boxes[block]) * is_region[block]  # [N, T']
        in_ignore_region |= (cover > config.ignore_cover).any(dim=1)

    is_positive = (best_iou >= config.positive) | is_closest
    is_between = (best_iou >= config.negative) | in_ignore_region
    no_target = torch.where(is_between, IGNORE, BACKGROUND)
    return torch.where(is_positive, best_target, no_target)


Matcher = Callable[[Tensor, Tensor, Tensor, MatcherConfig], Tensor]

MATCHERS: dict[str, Matcher] = {
    "max_iou": match_anchors,
}
