"""What a head gets its input from: backbone and FPN, several of them fused, or a network without a pyramid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.schema import FPNConfig, ModelConfig
from detector.models.backbones import build_backbone
from detector.models.fpn import FPN
from detector.structures import SIZE_DIVISOR


class Pyramid(nn.Module):
    """From normalised images to feature maps of equal width, one per level."""

    def __init__(self, backbone: nn.Module, config: FPNConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = FPN(backbone.levels, backbone.channels, config)
        self.levels, self.channels = self.fpn.levels, self.fpn.channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] → [B, channels, H / 2^l, W / 2^l] of each level, fine to coarse; odd sizes are rounded."""
        return self.fpn(self.backbone(images))


class FusedPyramid(nn.Module):
    """Several pyramids on the same images, fused level by level by ``sum``, ``mean`` or ``concat`` + 1×1."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        networks = (build_backbone(branch, config.in_channels, config.fpn.levels[0]) for branch in config.backbones)
        self.branches = nn.ModuleList(Pyramid(network, config.fpn) for network in networks)
        self.levels, self.channels = self.branches[0].levels, self.branches[0].channels
        self.fuse = config.pyramid.fuse
        if self.fuse == "concat":
            width = len(self.branches) * self.channels
            self.merge = nn.ModuleList(nn.Conv2d(width, self.channels, 1) for _ in self.levels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """As :meth:`Pyramid.forward`. Images are padded to whole cells of C5, as networks may round up or down."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % SIZE_DIVISOR, 0, -height % SIZE_DIVISOR))
        levels = zip(*(branch(images) for branch in self.branches), strict=True)
        if self.fuse == "concat":
            return [merge(torch.cat(level, dim=1)) for merge, level in zip(self.merge, levels, strict=True)]
        weight = 1 / len(self.branches) if self.fuse == "mean" else 1
        return [sum(level) * weight for level in levels]


class Trunk(nn.Module):
    """A network up to its last linear layer: the classic head's input instead of a pyramid."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbones[0], config.in_channels, finest=2, with_vector=True)
        self.levels, self.channels = (), self.backbone.vector_channels

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] → [B, channels]."""
        return self.backbone.vector(images)


def build_pyramid(config: ModelConfig) -> Pyramid | FusedPyramid | Trunk:
    """The input of the config's head."""
    if config.head.name == "classic":
        return Trunk(config)
    if config.backbone is None:
        return FusedPyramid(config)
    return Pyramid(build_backbone(config.backbone, config.in_channels, config.fpn.levels[0]), config.fpn)
