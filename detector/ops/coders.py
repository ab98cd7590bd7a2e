"""Box coders: what the channels of a box head mean.

Boxes and anchors are xyxy in pixels. Leading dimensions (``...``) broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from detector.config.parts import find_part
from detector.config.schema import BoxCoderConfig

# Upper limit of the deltas dw and dh, which keeps exp() finite; the same in Detectron2 and torchvision.
MAX_LOG_SCALE = math.log(1000.0 / 16)


class BoxCoder(Protocol):
    num_channels: int  # per anchor

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """The target channels of ``boxes``, [..., 4] and [..., 4] → [..., num_channels] float32."""

    def decode(self, channels: Tensor, anchors: Tensor) -> Tensor:
        """Boxes from channels, [..., num_channels] and [..., 4] → [..., 4] float32."""


class DeltaCoder:
    """Deltas (dx, dy, dw, dh): the centre's shift relative to the anchor's sides, and the log of the sides' ratios.

    Faster R-CNN, eq. 2, with weights of 1.
    """

    num_channels = 4

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        anchor_sides = anchors[..., 2:] - anchors[..., :2]
        anchor_centers = anchors[..., :2] + 0.5 * anchor_sides
        # A box without extent (padding, a clipped sliver) must not yield log(0).
        sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3)
        centers = 0.5 * (boxes[..., :2] + boxes[..., 2:])
        return torch.cat([(centers - anchor_centers) / anchor_sides, torch.log(sides / anchor_sides)], dim=-1)

    def decode(self, channels: Tensor, anchors: Tensor) -> Tensor:
        deltas, anchors = channels.float(), anchors.float()
        anchor_sides = anchors[..., 2:] - anchors[..., :2]
        anchor_centers = anchors[..., :2] + 0.5 * anchor_sides
        centers = anchor_centers + deltas[..., :2] * anchor_sides
        half_sides = 0.5 * anchor_sides * deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp()
        return torch.cat([centers - half_sides, centers + half_sides], dim=-1)


def build_box_coder(config: BoxCoderConfig) -> BoxCoder:
    return find_part("model.box_coder.name", config.name, BOX_CODERS)(config)


BOX_CODERS: dict[str, Callable[[BoxCoderConfig], BoxCoder]] = {
    "deltas": lambda config: DeltaCoder(),
}
