"""Feature pyramid network (Lin et al. 2017), with RetinaNet's P6 and P7."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.schema import FPNConfig


class FPN(nn.Module):
    """From backbone features C2–C5 to pyramid levels of equal width.

    ``in_levels`` and ``in_channels`` describe the backbone's features, fine to coarse, ending at C5. P6 is a stride-2
    convolution of C5 or P5, P7 one of P6 (RetinaNet, section 4); both exist only if ``config.levels`` has them.
    """

    def __init__(self, in_levels: tuple[int, ...], in_channels: tuple[int, ...], config: FPNConfig) -> None:
        super().__init__()
        self.levels = tuple(config.levels)
        self.channels = config.channels
        self.p6_from = config.p6_from
        self.upsample = config.upsample
        self.relu_before_p7 = config.relu_before_p7
        channels = config.channels
        channels_of = dict(zip(in_levels, in_channels, strict=True))
        lateral_levels = [level for level in in_levels if level >= self.levels[0]]
        self.lateral = nn.ModuleList(_convolution(channels_of[level], 1, config) for level in lateral_levels)
        if config.upsample == "deconv":
            self.deconv = nn.ModuleList(nn.ConvTranspose2d(channels, channels, 2, stride=2) for _ in lateral_levels[1:])
        self.output = nn.ModuleDict(
            {
                f"p{level}": _convolution(channels, 3, config) if config.output_conv else nn.Identity()
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
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.ConvTranspose2d):
                # Starts as nearest upsampling: every channel is copied to its 2×2 cells.
                with torch.no_grad():
                    module.weight.copy_(
                        torch.eye(channels, device=module.weight.device)[:, :, None, None].expand(-1, -1, 2, 2)
                    )
                nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """[B, C_l, H_l, W_l] each, fine to coarse → [B, channels, H_l, W_l] each, fine to coarse."""
        merged = [
            lateral(feature) for lateral, feature in zip(self.lateral, features[-len(self.lateral) :], strict=True)
        ]
        for index in reversed(range(len(merged) - 1)):
            merged[index] = merged[index] + self._upsampled(merged[index + 1], merged[index].shape[-2:], index)

        levels = range(6 - len(merged), 6)
        pyramid = {
            level: self.output[f"p{level}"](feature)
            for level, feature in zip(levels, merged, strict=True)
            if f"p{level}" in self.output
        }
        if 6 in self.levels:
            pyramid[6] = self.output["p6"](pyramid[5] if self.p6_from == "p5" else features[-1])
        if 7 in self.levels:
            pyramid[7] = self.output["p7"](F.relu(pyramid[6]) if self.relu_before_p7 else pyramid[6])
        return [pyramid[level] for level in self.levels]

    def _upsampled(self, coarse: Tensor, size: torch.Size, index: int) -> Tensor:
        """``coarse`` upsampled by 2, cropped or padded to ``size``: at odd sizes, networks round up or down."""
        if self.upsample == "nearest":
            return F.interpolate(coarse, size=size, mode="nearest")  # cell i takes cell i // 2
        if self.upsample == "deconv":
            doubled = self.deconv[index](coarse)
        else:
            doubled = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        missing = [max(0, size[1] - doubled.shape[3]), max(0, size[0] - doubled.shape[2])]
        return F.pad(doubled, (0, missing[0], 0, missing[1]), mode="replicate")[..., : size[0], : size[1]]


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups (Wu & He 2018, section 4); fewer for few channels, as a group of one channel on a 1×1 map is 0."""
    groups = math.gcd(32, channels)
    return nn.GroupNorm(groups // 2 if 1 < groups == channels else groups, channels)


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


def _convolution(in_channels: int, kernel: int, config: FPNConfig) -> nn.Module:
    """A convolution to the pyramid's width, with the config's norm and activation."""
    channels = config.channels
    convolution = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=config.norm == "none")
    layers: list[nn.Module] = [convolution]
    if config.norm == "bn":
        layers.append(nn.BatchNorm2d(channels))
    elif config.norm == "gn":
        layers.append(group_norm(channels))
    if config.activation != "none":
        layers.append(ACTIVATIONS[config.activation]())
    return nn.Sequential(*layers) if len(layers) > 1 else convolution
