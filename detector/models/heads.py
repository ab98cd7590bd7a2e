"""Prediction heads on a pyramid."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from detector.anchors import Anchors
from detector.config import ModelConfig
from detector.structures import Predictions


class RetinaHead(nn.Module):
    """Class and box subnets, shared by all levels (RetinaNet, section 4)."""

    def __init__(self, config: ModelConfig, levels: tuple[int, ...], in_channels: int, num_classes: int) -> None:
        super().__init__()
        head, anchors = config.head, config.anchors
        channels = head.channels or in_channels
        self.num_classes = num_classes
        self.cls_tower = _tower(in_channels, channels, head.num_convs, head.norm)
        self.box_tower = _tower(in_channels, channels, head.num_convs, head.norm)
        out_channels = channels if head.num_convs else in_channels
        self.cls_output = nn.Conv2d(out_channels, anchors.per_cell * num_classes, 3, padding=1)
        self.box_output = nn.Conv2d(out_channels, anchors.per_cell * 4, 3, padding=1)
        self.anchors = Anchors(anchors, levels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Every class of every anchor begins at the score ``prior``: without it the loss of 10^5 easy background anchors
        # drowns everything in the first steps (RetinaNet, section 3.3).
        nn.init.constant_(self.cls_output.bias, -math.log((1 - head.prior) / head.prior))

    def forward(self, pyramid: list[Tensor]) -> Predictions:
        """Pyramid levels [B, C, H_l, W_l], fine to coarse → predictions for all anchors of all levels."""
        logits = [_per_anchor(self.cls_output(self.cls_tower(feature)), self.num_classes) for feature in pyramid]
        deltas = [_per_anchor(self.box_output(self.box_tower(feature)), 4) for feature in pyramid]
        anchors, level_counts = self.anchors([tuple(feature.shape[-2:]) for feature in pyramid])
        return Predictions(torch.cat(logits, dim=1), torch.cat(deltas, dim=1), anchors, level_counts)


def _tower(in_channels: int, channels: int, num_convs: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(num_convs):
        layers.append(nn.Conv2d(in_channels if index == 0 else channels, channels, 3, padding=1, bias=norm == "none"))
        if norm == "gn":
            layers.append(nn.GroupNorm(math.gcd(32, channels), channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _per_anchor(output: Tensor, width: int) -> Tensor:
    """[B, A · width, H, W] → [B, H · W · A, width]: row, column, anchor, as the anchors are ordered."""
    return output.permute(0, 2, 3, 1).reshape(len(output), -1, width)


Head = Callable[[ModelConfig, tuple[int, ...], int, int], nn.Module]

HEADS: dict[str, Head] = {
    "retina": RetinaHead,
}
