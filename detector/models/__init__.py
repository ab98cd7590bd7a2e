"""The model: one graph from uint8 images to raw predictions, the same in training, evaluation and export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detector.config import ModelConfig, NormaliseConfig
from detector.errors import ConfigError, one_of
from detector.models.heads import HEADS
from detector.models.pyramid import Pyramid
from detector.structures import Predictions


class Model(nn.Module):
    """A head on a pyramid. Losses and post-processing are functions outside it (``detector.tasks``)."""

    def __init__(self, normalise: NormaliseConfig, pyramid: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(normalise.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalise.std).view(1, -1, 1, 1), persistent=False)
        self.pyramid = pyramid
        self.head = head

    def forward(self, images: Tensor, sizes: Tensor) -> Predictions:
        """``images`` [B, 3, H, W] uint8 RGB, padded right and below; ``sizes`` [B, 2] height, width before padding."""
        return self.head(self.pyramid(self.normalise(images, sizes)))

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Float images of mean 0 and deviation 1, with padding of exactly 0 as torchvision and Detectron2 have it."""
        rows = torch.arange(images.shape[-2], device=images.device)
        columns = torch.arange(images.shape[-1], device=images.device)
        inside = (rows < sizes[:, :1])[:, None, :, None] & (columns < sizes[:, 1:])[:, None, None, :]  # [B, 1, H, W]
        return (images - self.mean) / self.std * inside


def build_model(config: ModelConfig, num_classes: int) -> Model:
    """The model of a config, with random weights (``detector.weights`` loads others)."""
    if config.head.name not in HEADS:
        raise ConfigError(f"model.head.name: unknown head {config.head.name!r}; use {one_of(HEADS)}")
    pyramid = Pyramid(config)
    head = HEADS[config.head.name](config, pyramid.levels, pyramid.channels, num_classes)
    return Model(config.normalise, pyramid, head)
