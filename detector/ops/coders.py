"""Box coders: what the channels of a box head mean.

Boxes and anchors are xyxy in pixels. Leading dimensions (``...``) broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from detector.config.parts import find_part
from detector.config.schema import BoxCoderConfig
from detector.ops.boxes import box_centers, side_distances

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

    Faster R-CNN, eq. 2. Channels are deltas divided by ``stds``, one for centres and one for sides.
    """

    num_channels = 4

    def __init__(self, stds: Sequence[float] = (1.0, 1.0)) -> None:
        self.center_std, self.side_std = stds

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        anchor_sides = anchors[..., 2:] - anchors[..., :2]
        anchor_centers = anchors[..., :2] + 0.5 * anchor_sides
        # A box without extent (padding, a clipped sliver) must not yield log(0).
        sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3)
        centers = 0.5 * (boxes[..., :2] + boxes[..., 2:])
        shifts = (centers - anchor_centers) / (self.center_std * anchor_sides)
        return torch.cat([shifts, torch.log(sides / anchor_sides) / self.side_std], dim=-1)

    def decode(self, channels: Tensor, anchors: Tensor) -> Tensor:
        deltas, anchors = channels.float(), anchors.float()
        anchor_sides = anchors[..., 2:] - anchors[..., :2]
        anchor_centers = anchors[..., :2] + 0.5 * anchor_sides
        centers = anchor_centers + deltas[..., :2] * (self.center_std * anchor_sides)
        log_scales = (self.side_std * deltas[..., 2:]).clamp(max=MAX_LOG_SCALE)
        half_sides = 0.5 * anchor_sides * log_scales.exp()
        return torch.cat([centers - half_sides, centers + half_sides], dim=-1)


class DistributionCoder:
    """For each side of the box, a distribution over distances from the anchor's centre (GFL: Li et al. 2020, eq. 3-6).

    The channels are logits of the distances 0, 1, …, ``reg_max`` for left, top, right and bottom, in this order; the
    decoded distance is the expectation. A distance of 1 is ``unit`` of the anchor's width or height: one stride, for
    anchors of 8 strides and a unit of 1/8.
    """

    def __init__(self, reg_max: int, unit: float) -> None:
        self.reg_max, self.unit = reg_max, unit
        self.num_channels = 4 * (reg_max + 1)

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        return self.target(boxes, anchors).clamp(min=1e-12).log().flatten(-2)

    def decode(self, channels: Tensor, anchors: Tensor) -> Tensor:
        probabilities = self.logits(channels).softmax(dim=-1)
        distances = (probabilities * self._distances(channels)).sum(dim=-1) * self._units(anchors)  # [..., 4] pixels
        centers = box_centers(anchors.float())
        return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], dim=-1)

    def logits(self, channels: Tensor) -> Tensor:
        """[..., num_channels] → [..., 4, reg_max + 1] float32."""
        return channels.float().unflatten(-1, (4, self.reg_max + 1))

    def target(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """The distribution on the two nearest whole distances whose expectation is the true one, [..., 4, reg_max + 1].

        Example: 2.3 → 0.7 at 2 and 0.3 at 3. Distances are limited to 0 to ``reg_max`` - 0.1.
        """
        distances = side_distances(box_centers(anchors), boxes) / self._units(anchors)
        distances = distances.clamp(min=0, max=self.reg_max - 0.1)  # [..., 4]
        return (1 - (distances[..., None] - self._distances(distances)).abs()).clamp(min=0)

    def loss(self, channels: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        """The distribution focal loss: the cross entropy with :meth:`target`, mean over the sides, [...].

        Logits (0, 0, 2, 1, 0) and a true distance of 2.3 → 0.8732.
        """
        log_probabilities = self.logits(channels).log_softmax(dim=-1)
        return -(self.target(boxes, anchors) * log_probabilities).sum(dim=-1).mean(dim=-1)

    def _distances(self, like: Tensor) -> Tensor:
        """0, 1, …, reg_max."""
        return torch.arange(self.reg_max + 1, dtype=torch.float32, device=like.device)

    def _units(self, anchors: Tensor) -> Tensor:
        """Pixels in a distance of 1, by side, [..., 4]."""
        sides = (anchors[..., 2:] - anchors[..., :2]).float() * self.unit
        return torch.cat([sides, sides], dim=-1)


def build_box_coder(config: BoxCoderConfig) -> BoxCoder:
    return find_part("model.box_coder.name", config.name, BOX_CODERS)(config)


BOX_CODERS: dict[str, Callable[[BoxCoderConfig], BoxCoder]] = {
    "deltas": lambda config: DeltaCoder(config.stds),
    "distribution": lambda config: DistributionCoder(config.reg_max, config.unit),
}
