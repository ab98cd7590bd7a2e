"""The VGG family, complete (Simonyan & Zisserman 2015, table 1), from one table.

The classifier and the parameters' names are torchvision's, so that its ImageNet weights load into A, B, D and E.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from torchvision.models.vgg import VGG

WIDTHS = (64, 128, 256, 512, 512)  # of the five stages; a 2×2 max pooling ends each


class Configuration(NamedTuple):
    """A column of table 1."""

    num_convs: tuple[int, int, int, int, int]  # 3×3 convolutions of each stage
    lrn: bool = False  # local response normalisation after the first
    pointwise: bool = False  # a third convolution in the last three stages, 1×1


CONFIGURATIONS = {
    "vgg11": Configuration((1, 1, 2, 2, 2)),  # A
    "vgg11_lrn": Configuration((1, 1, 2, 2, 2), lrn=True),  # A-LRN
    "vgg13": Configuration((2, 2, 2, 2, 2)),  # B
    "vgg16_1x1": Configuration((2, 2, 2, 2, 2), pointwise=True),  # C
    "vgg16": Configuration((2, 2, 3, 3, 3)),  # D
    "vgg19": Configuration((2, 2, 4, 4, 4)),  # E
}


def build_vgg(configuration: Configuration, batch_norm: bool) -> nn.Module:
    """The whole network, classifier included, with random weights."""
    return VGG(nn.Sequential(*_layers(configuration, batch_norm)))


def _layers(configuration: Configuration, batch_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for stage, (width, num_convs) in enumerate(zip(WIDTHS, configuration.num_convs, strict=True), start=1):
        kernels = [3] * num_convs + [1] * (configuration.pointwise and stage > 2)
        for kernel in kernels:
            layers.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        if configuration.lrn and stage == 1:
            # Section 2.1 uses Krizhevsky's parameters: k 2, n 5, α 1e-4, β 0.75. torch divides the sum over n channels
            # by n, Krizhevsky does not.
            layers.append(nn.LocalResponseNorm(size=5, alpha=5 * 1e-4, beta=0.75, k=2.0))
        layers.append(nn.MaxPool2d(2))
    return layers
