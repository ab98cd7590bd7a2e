"""Feature pyramid network (Lin et al. 2017), with RetinaNet's P6 and P7."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from detector.config import FPNConfig


class FPN(nn.Module):
    """Backbone features C2–C5 to pyramid levels of one width.

    ``in_levels`` and ``in_channels`` describe the backbone's features, fine to coarse, ending at C5. P6 is a stride-2
    convolution of C5 or P5, P7 one of P6 (RetinaNet, section 4); both are made only if asked for.
    """

    def __init__(self, in_levels: tuple[int, ...], in_channels: tuple[int, ...], config: FPNConfig) -> None:
        super().__init__()
        self.levels = tuple(config.levels)
        self.channels = config.channels
        self.p6_from = config.p6_from
        channels = config.channels
        channels_of = dict(zip(in_levels, in_channels, strict=True))
        lateral_levels = [level for level in in_levels if level >= self.levels[0]]
        self.lateral = nn.ModuleList(nn.Conv2d(channels_of[level], channels, 1) for level in lateral_levels)
        self.output = nn.ModuleDict(
            {
                f"p{level}": nn.Conv2d(channels, channels, 3, padding=1)
                for level in lateral_levels
                if level in self.levels
            }
        )
        coarse_in = channels if config.p6_from == "p5" else channels_of[5]
        for level in (6, 7):
            if level in self.levels:
                self.output[f"p{level}"] = nn.Conv2d(coarse_in, channels, 3, stride=2, padding=1)
                coarse_in = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """[B, C_l, H_l, W_l] each, fine to coarse → [B, channels, H_l, W_l] each, fine to coarse."""
        merged = [
            lateral(feature) for lateral, feature in zip(self.lateral, features[-len(self.lateral) :], strict=True)
        ]
        for index in reversed(range(len(merged) - 1)):
            size = merged[index].shape[-2:]  # cell i takes from cell i // 2, also where the size is odd
            merged[index] = merged[index] + F.interpolate(merged[index + 1], size=size, mode="nearest")

        levels = range(6 - len(merged), 6)
        pyramid = {
            level: self.output[f"p{level}"](feature)
            for level, feature in zip(levels, merged, strict=True)
            if f"p{level}" in self.output
        }
        if 6 in self.levels:
            pyramid[6] = self.output["p6"](pyramid[5] if self.p6_from == "p5" else features[-1])
        if 7 in self.levels:
            pyramid[7] = self.output["p7"](F.relu(pyramid[6]))
        return [pyramid[level] for level in self.levels]
