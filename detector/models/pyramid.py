"""A pyramid: backbone and FPN."""

from __future__ import annotations

from torch import Tensor, nn

from detector.config import ModelConfig
from detector.models.backbones import build_backbone
from detector.models.fpn import FPN


class Pyramid(nn.Module):
    """Normalised images to feature maps of one width, one a level."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone, finest=config.fpn.levels[0])
        self.fpn = FPN(self.backbone.levels, self.backbone.channels, config.fpn)
        self.levels, self.channels = self.fpn.levels, self.fpn.channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → [B, channels, ceil(H / 2^l), ceil(W / 2^l)] of each level, fine to coarse."""
        return self.fpn(self.backbone(images))
