"""Assign ground-truth boxes to anchors.

Dimension key: T targets of one image (padded), N anchors in all levels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detector.config.schema import MatcherConfig
from detector.ops.boxes import box_area, intersection
from detector.ops.chunks import rows_at_once
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
    anchors = anchors.t().contiguous().t()  # side after side: whatever reads one side of all anchors reads on and on
    areas = box_area(anchors)  # [N]
    best_iou = torch.zeros_like(areas)  # [N]
    best_target = torch.zeros_like(areas, dtype=torch.int64)  # [N]
    is_closest = torch.zeros_like(areas, dtype=torch.bool)  # [N]
    covered = torch.zeros_like(areas)  # [N] the largest area that an anchor shares with an ignore region

    for start in range(0, len(boxes), BLOCK):
        block = boxes[start : start + BLOCK, None]  # [T', 1, 4]
        is_region = (labels[start : start + BLOCK, None] == IGNORE_REGION).to(areas.dtype)  # [T', 1]
        # Nothing overlaps an endless area: not what is no object.
        block_areas = torch.where(labels[start : start + BLOCK, None] >= 0, box_area(block), torch.inf)  # [T', 1]
        iou = areas.new_empty(len(block), len(areas))  # [T', N]
        for tile in _tiles(len(areas), len(block), areas.device):
            shared = intersection(block, anchors[tile])  # [T', N']
            iou[:, tile] = shared / (block_areas + areas[tile].clamp(min=torch.finfo(areas.dtype).tiny) - shared)
            covered[tile] = torch.maximum(covered[tile], (shared * is_region).amax(dim=0))
            tile_iou = iou[:, tile].amax(dim=0)  # [N']
            # Of equal overlaps the first target wins, in a block and among them. Strictly greater, so none at all is 0.
            tile_target = start + _first_equal(iou[:, tile], tile_iou)
            best_target[tile] = torch.where(tile_iou > best_iou[tile], tile_target, best_target[tile])
            best_iou[tile] = torch.maximum(best_iou[tile], tile_iou)
        if config.low_quality:
            # Every object keeps its closest anchors, else small ones get no gradient (Faster R-CNN, 3.1.2). An object
            # that overlaps no anchor is closest to none: torchvision lacks this guard and makes all of them positive.
            closest_iou = iou.amax(dim=1, keepdim=True)  # [T', 1]
            closest_iou = torch.where(closest_iou > 0, closest_iou, torch.inf)
            for tile in _tiles(len(areas), len(block), areas.device):
                is_closest[tile] |= (iou[:, tile] - closest_iou).amax(dim=0) == 0

    is_positive = (best_iou >= config.positive) | is_closest
    is_between = (best_iou >= config.negative) | (covered > config.ignore_cover * areas)
    no_target = torch.where(is_between, IGNORE, BACKGROUND)
    return torch.where(is_positive, best_target, no_target)


def _tiles(num_anchors: int, num_targets: int, device: torch.device) -> list[slice]:
    """Anchors that are compared with ``num_targets`` at once."""
    step = rows_at_once(num_anchors, num_targets, device)
    return [slice(start, start + step) for start in range(0, num_anchors, step)]


def _first_equal(iou: Tensor, value: Tensor) -> Tensor:
    """The first row of each column of ``iou`` [T', N'] that is ``value`` [N'], which one is.

    All in floats: on a CPU, argmax takes twenty times as long, and comparing to bools six times.
    """
    countdown = torch.arange(len(iou), 0, -1, dtype=iou.dtype, device=iou.device)[:, None]  # [T', 1]
    return len(iou) - iou.clone().eq_(value).mul_(countdown).amax(dim=0).long()


Matcher = Callable[[Tensor, Tensor, Tensor, MatcherConfig], Tensor]

MATCHERS: dict[str, Matcher] = {
    "max_iou": match_anchors,
}
