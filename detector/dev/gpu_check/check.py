"""What a part of the check is given, and what parts share."""

from __future__ import annotations

from typing import NamedTuple

import torch

from detector.config.schema import Config
from detector.dev.benchmark import peer
from detector.dev.benchmark.measure import Settings

SMALL_CONFIG, CONFIG = "retinanet_r18_fpn.yaml", "retinanet_r50_fpn.yaml"
SIDE, BATCH = 800, 32


class Check(NamedTuple):
    """What a part is given."""

    device: str
    scale: float = 1.0

    @property
    def settings(self) -> Settings:
        return Settings(device=self.device, scale=self.scale)

    @property
    def is_cuda(self) -> bool:
        return torch.device(self.device).type == "cuda"

    @property
    def fast_precision(self) -> str:
        return "bf16" if self.is_cuda else "fp32"

    def side(self, pixels: int) -> int:
        """An image side at this scale; on fewer pixels than 128, single ReLUs decide how much weights change."""
        return max(128, self.settings.side(pixels))


class SkippedError(Exception):
    """A part that cannot run here."""


def step_config(check: Check, *overrides: str, name: str = SMALL_CONFIG) -> Config:
    """The config of a small training step that torchvision can take too."""
    side, batch = check.side(SIDE // 2), check.settings.scaled(8, least=2)
    size = f"data.resize={{short: [{side}], long: {side}}}"
    return peer.comparable(name, (size, f"train.batch_size={batch}", *overrides))
