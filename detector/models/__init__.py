"""The model: one graph from integer images to raw predictions, the same in training, evaluation and export."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from detector.config.parts import check_signature, find_part
from detector.config.schema import ModelConfig
from detector.errors import ConfigError, one_of
from detector.models.backbones import PROBE_SIDES, Backbone
from detector.models.heads import HEADS, RetinaHead
from detector.models.norms import fold_norms
from detector.models.precision import AUTOCAST
from detector.models.pyramid import Pyramid, build_pyramid
from detector.models.recompute import free_large_tensors_immediately
from detector.structures import Predictions

# The layers whose weights autocast converts.
CAST = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class Model(nn.Module):
    """A head on a pyramid. Losses and post-processing are functions outside it (``detector.tasks``)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], pyramid: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.pyramid = pyramid
        self.head = head

    def forward(self, images: Tensor, sizes: Tensor) -> Predictions | Tensor:
        """The head's output: predictions of a detection head, or logits [B, K].

        ``images`` [B, C, H, W] uint8 or uint16, RGB if C is 3, padded right and below; ``sizes`` [B, 2] are height and
        width before padding.
        """
        return self.head(self.pyramid(self.normalise(images, sizes)))

    def place(self, device: torch.device) -> Model:
        """This model on ``device``, channels last in memory, as images are loaded.

        On an H200 a training step of a ResNet-50 at 800² takes 17 % less time so in fp32 and 27 % less in bf16; with
        group norms, which PyTorch computes channels first in fp32, 5 % and 12 % less (docs/BENCHMARKS.md).
        """
        return self.to(device, memory_format=torch.channels_last)

    def recompute_activations(self) -> None:
        """Trade time for memory in training: see ``train.activation_checkpointing``."""
        free_large_tensors_immediately()
        for module in self.modules():
            if isinstance(module, Backbone):
                module.recompute()
            elif isinstance(module, RetinaHead):
                module.recomputes = True

    def fold_norms(self) -> Model:
        """Fold batch norms into the convolutions before them, and return this model, which then only predicts."""
        shape, noise = (1, self.mean.shape[1], *PROBE_SIDES), torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=noise).to(self.mean.device)
        fold_norms(self, partial(self, images, torch.tensor([PROBE_SIDES], device=self.mean.device)))
        for module in self.modules():
            if isinstance(module, Backbone):
                module.drop_training()
        return self

    def fix_precision(self, precision: str) -> Model:
        """This model, which then only predicts, with the weights of layers in what autocast makes of them in each pass.

        So that is done once. Outputs stay the same bits.
        """
        for module in self.modules():
            if AUTOCAST[precision] and isinstance(module, CAST):
                module.to(AUTOCAST[precision])
        return self

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Float images (x - mean) / std, with padding of exactly 0 as in torchvision and Detectron2."""
        rows = torch.arange(images.shape[-2], device=images.device)
        columns = torch.arange(images.shape[-1], device=images.device)
        inside = (rows < sizes[:, :1])[:, None, :, None] & (columns < sizes[:, 1:])[:, None, None, :]  # [B, 1, H, W]
        if images.dtype == torch.uint16:
            images = images.float() / 257  # 65535 → 255
        return (images - self.mean) / self.std * inside


def build_model(
    config: ModelConfig,
    num_classes: int,
    backbone: nn.Module | None = None,
    pyramid: nn.Module | None = None,
    head: nn.Module | None = None,
) -> Model:
    """The model of a config, randomly initialised (:func:`detector.open_model` loads weights).

    A module that is given replaces the config's part. ``backbone(images)`` returns a list of feature maps, described by
    its attributes ``levels`` and ``channels`` (:class:`detector.models.backbones.Backbone` wraps a network so);
    ``pyramid`` does so too, with one number of channels. ``head(feature_maps)`` returns what the task's loss takes:

        config = detector.Config().model
        build_model(config, 3, head=MyHead(config, (3, 4, 5, 6, 7), in_channels=256, num_classes=3))
    """
    for name, part in (("backbone", backbone), ("pyramid", pyramid), ("head", head)):
        if part is not None:
            _check_given(name, part)
    build_head = None if head else find_part("model.head.name", config.head.name, HEADS)
    if pyramid is None:
        pyramid = Pyramid(backbone, config.fpn) if backbone else build_pyramid(config)
    if build_head:
        head = build_head(config, pyramid.levels, pyramid.channels, num_classes)
    return Model(config.mean, config.std, pyramid, head)


def _check_given(name: str, part: object) -> None:
    """Refuse an argument of :func:`build_model` that cannot be that part of a model."""
    kind = part.__name__ if isinstance(part, type) else type(part).__name__
    if not isinstance(part, nn.Module):
        raise ConfigError(f"{name}: {kind} is not a module; give {name}={kind}(…), of a subclass of nn.Module")
    missing = [attribute for attribute in ("levels", "channels") if name != "head" and not hasattr(part, attribute)]
    if missing:
        raise ConfigError(f"{name}: {kind} has no attribute {one_of(missing)}; set levels, as (3, 4, 5), and channels")
    check_signature(f"{name}: {kind}.forward", part.forward, ["images" if name != "head" else "feature_maps"])
