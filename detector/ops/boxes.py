"""Box geometry: overlaps, clipping and rescaling.

Boxes are xyxy in pixels, in continuous coordinates: [0, 0, 10, 10] covers 10×10 pixels. Leading dimensions (``...``)
broadcast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-7  # two empty boxes at one point have union and hull 0; their gradient must be 0, not NaN
SMALLEST_SIDE = 1e-3  # pixels


def box_area(boxes: Tensor) -> Tensor:
    """Areas in square pixels, [..., 4] → [...]; an inverted box has area 0."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection area of paired boxes, [..., 4] and [..., 4] → [...]."""
    # One tensor per side, not per corner: operations then run along the many boxes, not along two numbers.
    (left1, top1, right1, bottom1), (left2, top2, right2, bottom2) = boxes1.unbind(dim=-1), boxes2.unbind(dim=-1)
    width = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)
    height = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    return width * height


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of every box with every other, [..., P, 4] and [..., Q, 4] → [..., P, Q]; 0 where both are empty."""
    shared = intersection(boxes1[..., :, None, :], boxes2[..., None, :, :])
    union = box_area(boxes1)[..., :, None] + box_area(boxes2)[..., None, :] - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


def paired_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of paired boxes, [..., 4] and [..., 4] → [...]; 0 where both are empty."""
    shared = intersection(boxes1, boxes2)
    union = box_area(boxes1) + box_area(boxes2) - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


def giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU of paired boxes, [..., 4] and [..., 4] → [...] in [-1, 1] (Rezatofighi et al. 2019, alg. 1)."""
    shared = intersection(boxes1, boxes2)
    union = box_area(boxes1) + box_area(boxes2) - shared
    hull = _hull_sides(boxes1, boxes2).clamp(min=0).prod(dim=-1)
    return shared / (union + EPS) - (hull - union) / (hull + EPS)


def diou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU less the squared distance of the centres over the squared diagonal of the hull (Zheng et al. 2020, eq. 7).

    Of paired boxes, [..., 4] and [..., 4] → [...] in [-1, 1].
    """
    shared = intersection(boxes1, boxes2)
    union = box_area(boxes1) + box_area(boxes2) - shared
    distance = (box_centers(boxes1) - box_centers(boxes2)).square().sum(dim=-1)
    diagonal = _hull_sides(boxes1, boxes2).square().sum(dim=-1)
    return shared / (union + EPS) - distance / (diagonal + EPS)


def ciou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """DIoU less α · v, where v compares the ratios of the sides (Zheng et al. 2020, eq. 8 to 11).

    Of paired boxes, [..., 4] and [..., 4] → [...]. α has no gradient, and is 0 unless the IoU is above 0.5.
    """
    # A side of 0 would give the angle a gradient of 0 / 0; the clamp stops it there.
    (width1, height1), (width2, height2) = (
        (boxes[..., 2:] - boxes[..., :2]).clamp(min=SMALLEST_SIDE).unbind(dim=-1) for boxes in (boxes1, boxes2)
    )
    v = 4 / math.pi**2 * (torch.atan(width1 / height1) - torch.atan(width2 / height2)).square()
    with torch.no_grad():
        iou = paired_iou(boxes1, boxes2)
        alpha = torch.where(iou > 0.5, v / (1 - iou + v + EPS), 0.0)
    return diou(boxes1, boxes2) - alpha * v


def _hull_sides(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Width and height of the smallest box around both of paired boxes, [..., 4] and [..., 4] → [..., 2]."""
    return torch.maximum(boxes1[..., 2:], boxes2[..., 2:]) - torch.minimum(boxes1[..., :2], boxes2[..., :2])


def box_centers(boxes: Tensor) -> Tensor:
    """Centres (x, y), [..., 4] → [..., 2]."""
    return 0.5 * (boxes[..., :2] + boxes[..., 2:])


def side_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances of points [..., 2] from the left, top, right and bottom of their boxes, [..., 4] → [..., 4].

    A distance is negative where the point is beyond that side.
    """
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """How central points [..., 2] lie in their boxes, [..., 4] → [...] in [0, 1] (FCOS: Tian et al. 2019, eq. 3).

    Example: (30, 20) in (0, 0, 100, 60) → √(30/70 · 20/40) = 0.4629. Outside it is 0.
    """
    left_top, right_bottom = side_distances(points, boxes).clamp(min=0).split(2, dim=-1)
    ratios = torch.minimum(left_top, right_bottom) / torch.maximum(left_top, right_bottom).clamp(min=EPS)
    return ratios.prod(dim=-1).sqrt()


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes clipped to their image, [B, D, 4] with sizes [B, 2] (height, width)."""
    limits = sizes.to(boxes.dtype).flip(-1).repeat(1, 2)[:, None, :]  # [B, 1, 4] as width, height, width, height
    return torch.minimum(boxes.clamp(min=0), limits)


def rescale(boxes: Tensor, sizes: Tensor, new_sizes: Tensor) -> Tensor:
    """Boxes of images of ``sizes``, scaled to ``new_sizes``: [B, D, 4] with sizes [B, 2] (height, width)."""
    factors = (new_sizes.to(boxes.dtype) / sizes.to(boxes.dtype)).flip(-1).repeat(1, 2)
    return boxes * factors[:, None, :]
