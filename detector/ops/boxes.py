"""Box geometry: overlaps, clipping and rescaling.

Boxes are xyxy in pixels, in continuous coordinates: [0, 0, 10, 10] covers 10×10 pixels. Leading dimensions (``...``)
broadcast.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU of paired boxes, [..., 4] and [..., 4] → [...] in [-1, 1] (Rezatofighi et al. 2019, alg. 1)."""
    shared = intersection(boxes1, boxes2)
    union = box_area(boxes1) + box_area(boxes2) - shared
    hull_sides = torch.maximum(boxes1[..., 2:], boxes2[..., 2:]) - torch.minimum(boxes1[..., :2], boxes2[..., :2])
    hull = hull_sides.clamp(min=0).prod(dim=-1)
    eps = 1e-7  # two empty boxes at one point have union and hull 0; their gradient must be 0, not NaN
    return shared / (union + eps) - (hull - union) / (hull + eps)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes clipped to their image, [B, D, 4] with sizes [B, 2] (height, width)."""
    limits = sizes.to(boxes.dtype).flip(-1).repeat(1, 2)[:, None, :]  # [B, 1, 4] as width, height, width, height
    return torch.minimum(boxes.clamp(min=0), limits)


def rescale(boxes: Tensor, sizes: Tensor, new_sizes: Tensor) -> Tensor:
    """Boxes of images of ``sizes``, scaled to ``new_sizes``: [B, D, 4] with sizes [B, 2] (height, width)."""
    factors = (new_sizes.to(boxes.dtype) / sizes.to(boxes.dtype)).flip(-1).repeat(1, 2)
    return boxes * factors[:, None, :]
